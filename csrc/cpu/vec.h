// Vectors of FASTSSL_WIDTH floats in the compiler's own vector types, so that one source serves
// every instruction set. Included once per instruction set, inside its namespace; must not call
// inline functions of the standard library, whose copies the linker could share between sets.

constexpr int W = FASTSSL_WIDTH;

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef float vf_unaligned __attribute__((vector_size(4 * W), aligned(4), may_alias));

#define FASTSSL_INLINE static inline __attribute__((always_inline))

FASTSSL_INLINE vf load(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }
FASTSSL_INLINE void store(float* p, vf v) { *reinterpret_cast<vf_unaligned*>(p) = v; }
FASTSSL_INLINE vf splat(float a) { return a - vf{}; }
FASTSSL_INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }

FASTSSL_INLINE int64_t lower(int64_t a, int64_t b) { return a < b ? a : b; }
FASTSSL_INLINE int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

FASTSSL_INLINE double sum(vf v) {
  double s = 0;
  for (int l = 0; l < W; ++l) s += v[l];
  return s;
}

FASTSSL_INLINE float highest(vf v) {
  float m = v[0];
  for (int l = 1; l < W; ++l) m = v[l] > m ? v[l] : m;
  return m;
}

// 0, 1, …, W-1
FASTSSL_INLINE vi lanes() {
  vi v{};
  for (int l = 0; l < W; ++l) v[l] = l;
  return v;
}

// 2^t for t in [-126, 127]; relative error below 1e-7.
FASTSSL_INLINE vf exp2(vf t) {
  const float magic = 12582912.f;  // 1.5 · 2^23: adding it rounds to an integer
  const vf shifted = t + magic;
  const vf f = t - (shifted - magic);  // in [-1/2, 1/2]
  vf p = splat(1.535336188319500e-4f);
  p = p * f + 1.339887440266574e-3f;
  p = p * f + 9.618437357674640e-3f;
  p = p * f + 5.550332471162809e-2f;
  p = p * f + 2.402264791363012e-1f;
  p = p * f + 6.931472028550421e-1f;
  p = p * f + 1.0f;
  return (vf)((vi)p + ((vi)shifted << 23));
}

// The same for any t: what is below the range counts as 2^-126, what is above as 2^126.
FASTSSL_INLINE vf exp2_clamped(vf t) {
  t = vmax(t, splat(-126.f));
  return exp2(t < 126.f ? t : splat(126.f));
}

template <int...>
struct Ints {};
template <int N, int... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <int... I>
struct Count<0, I...> {
  using type = Ints<I...>;
};

// In-register transposition of W vectors: log2(W) rounds of two-source permutations.
template <int S, int... I>
FASTSSL_INLINE void transpose_round(vf (&v)[W], Ints<I...>) {
  for (int i = 0; i < W; ++i) {
    if (i & S) continue;
    const vf a = v[i], b = v[i + S];
#if defined(__clang__) || __GNUC__ >= 12
    v[i] = __builtin_shufflevector(a, b, ((I & S) ? W + I - S : I)...);
    v[i + S] = __builtin_shufflevector(a, b, ((I & S) ? W + I : I + S)...);
#else
    v[i] = __builtin_shuffle(a, b, vi{((I & S) ? W + I - S : I)...});
    v[i + S] = __builtin_shuffle(a, b, vi{((I & S) ? W + I : I + S)...});
#endif
  }
}

template <int S = W / 2>
FASTSSL_INLINE void transpose(vf (&v)[W]) {
  transpose_round<S>(v, typename Count<W>::type{});
  if constexpr (S > 1) transpose<S / 2>(v);
}
