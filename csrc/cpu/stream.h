// Stores that leave the caches alone, for what is larger than they are or read much later.

// Past the caches, to an aligned address.
FASTSSL_INLINE void stream(float* p, vf v) {
#if defined(__x86_64__) && FASTSSL_WIDTH == 16
  __builtin_ia32_movntps512(p, v);
#elif defined(__x86_64__) && FASTSSL_WIDTH == 8
  __builtin_ia32_movntps256(p, v);
#elif defined(__x86_64__)
  __builtin_ia32_movntps(p, v);
#else
  store(p, v);
#endif
}

// After the last: other threads may read what was streamed.
FASTSSL_INLINE void end_streams() {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}
