// Pixels of a view as they are asked for: solarized, normalised, to the nearest of their type.

typedef half_v half_v_unaligned __attribute__((aligned(2), may_alias));

// No pixel is NaN but for the processor's own, which stays one.
FASTSSL_INLINE void put(BFloat16* to, vf x) {
  const bits_v bits = (bits_v)x, nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  *reinterpret_cast<half_v_unaligned*>(to) = __builtin_convertvector(nearest, half_v);
}
FASTSSL_INLINE void put(Float16* to, vf x) {
  alignas(64) float values[W];
  store(values, x);
  for (int l = 0; l < W; ++l) narrow(values[l], to[l]);
}

// Two vectors, side by side.
template <class Out>
FASTSSL_INLINE void put(Out* to, vf x, vf y) {
  put(to, x);
  put(to + W, y);
}
#if defined(__x86_64__) && FASTSSL_WIDTH == 16
static const bool narrows = __builtin_cpu_supports("avx512bf16");
// By one instruction where there is one; subnormal numbers are 0 to it.
FASTSSL_INLINE vf narrowed(vf x, vf y) {
  vf both;
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(both) : "v"(x), "v"(y));
  return both;
}
FASTSSL_INLINE void put(BFloat16* to, vf x, vf y) {
  if (!narrows) return put<BFloat16>(to, x, y);
  store(reinterpret_cast<float*>(to), narrowed(x, y));
}
#endif

constexpr int64_t kStreamedViews = 1 << 21;  // bytes of views that are not read before others come

// Whether whole lines of the cache are written, of rows that begin with one.
static bool streams(const AugmentProblem& p) {
#if defined(__x86_64__) && FASTSSL_WIDTH == 16
  const int64_t row = p.width * (p.element == Element::float32 ? 4 : 2);
  return !p.channels_last && row % 64 == 0 && uintptr_t(p.out) % 64 == 0 &&
         p.rows * p.channels * p.height * row >= kStreamedViews &&
         (p.element == Element::float32 || (p.element == Element::bfloat16 && narrows));
#else
  return false;
#endif
}

// Those of put, in whole lines.
template <class Out>
FASTSSL_INLINE void stream(Out* to, vf x, vf y) {
#if defined(__x86_64__) && FASTSSL_WIDTH == 16
  if constexpr (sizeof(Out) == 2) return stream(reinterpret_cast<float*>(to), narrowed(x, y));
  stream(reinterpret_cast<float*>(to), x);
  stream(reinterpret_cast<float*>(to + W), y);
#endif
}

// Three vectors as one stretch of their lanes in turn: its vector number M.
template <int M, int... I>
FASTSSL_INLINE vf interleaved(vf a, vf b, vf c, Ints<I...>) {
  const vf two = FASTSSL_SHUFFLE(a, b, ((M * W + I) % 3 == 1 ? W : 0) + (M * W + I) / 3 ...);
  return FASTSSL_SHUFFLE(two, c, ((M * W + I) % 3 == 2 ? W + (M * W + I) / 3 : I)...);
}

template <int C>
class Writer {
 public:
  Writer(const AugmentProblem& p, int64_t row)
      : width(p.width), plane(p.height * p.width), element(p.element), channels_last(p.channels_last),
        first(p.out + row * C * plane * (element == Element::float32 ? 4 : 2)),
        threshold(p.parameters[row * kAugmentColumns + kSolarize]), streamed(streams(p)) {
    for (int k = 0; k < 3; ++k) {
      gain[k] = p.gain[k];
      bias[k] = p.bias[k];
    }
  }

  // Pixels from (y, x) on, or what the view has of them.
  FASTSSL_MEMBER void write(int64_t y, int64_t x, const Pixels<vf> (&pixels)[kAbreast]) const {
    if (threshold > 255) return write_typed(y, x, pixels);
    const auto solarized = [&](vf x) { return x >= threshold ? 255 - x : x; };
    Pixels<vf> changed[kAbreast];
    for (int v = 0; v < kAbreast; ++v)
      changed[v] = {solarized(pixels[v].red), solarized(pixels[v].green), solarized(pixels[v].blue)};
    write_typed(y, x, changed);
  }

  void erase(const float* q) const {
    if (element == Element::float32)
      erase<float>(q);
    else
      erase<BFloat16>(q);  // whose zero is float16's
  }

 private:
  FASTSSL_MEMBER void write_typed(int64_t y, int64_t x, const Pixels<vf> (&pixels)[kAbreast]) const {
    if (element == Element::bfloat16)
      write_in<BFloat16>(y, x, pixels);
    else if (element == Element::float16)
      write_in<Float16>(y, x, pixels);
    else
      write_in<float>(y, x, pixels);
  }

  FASTSSL_MEMBER vf normalised(vf x, int k) const { return x * gain[k] + bias[k]; }

  template <class Out>
  FASTSSL_MEMBER void write_in(int64_t y, int64_t x, const Pixels<vf> (&pixels)[kAbreast]) const {
    Out* out = reinterpret_cast<Out*>(first);
    const int64_t at = y * width + x;
    const auto& [a, b] = pixels;
    if (channels_last || x + kAbreast * W > width) {
      write_few(out, at, width - x, a.red, a.green, a.blue);
      write_few(out, at + W, width - x - W, b.red, b.green, b.blue);
      return;
    }
    write_pair(out + at, normalised(a.red, 0), normalised(b.red, 0));
    if (C == 1) return;
    write_pair(out + plane + at, normalised(a.green, 1), normalised(b.green, 1));
    write_pair(out + 2 * plane + at, normalised(a.blue, 2), normalised(b.blue, 2));
  }

  template <class Out>
  FASTSSL_MEMBER void write_pair(Out* to, vf x, vf y) const {
    if (streamed)
      stream(to, x, y);
    else
      put(to, x, y);
  }

  // A vector or the part of it that the view has, in any layout.
  template <class Out>
  void write_few(Out* out, int64_t at, int64_t left, vf red, vf green, vf blue) const {
    const vf values[3] = {normalised(red, 0), normalised(green, C / 2), normalised(blue, C - 1)};
    const int64_t pixel = channels_last ? C : 1, channel = channels_last ? 1 : plane;
    out += at * pixel;
    if (left < W) {
      for (int k = 0; k < C; ++k) {
        Out last[W];
        put(last, values[k]);
        for (int64_t l = 0; l < left; ++l) out[k * channel + l * pixel] = last[l];
      }
    } else if (C == 3 && channels_last) {
      using Lanes = typename Count<W>::type;
      put(out, interleaved<0>(values[0], values[1], values[2], Lanes{}));
      put(out + W, interleaved<1>(values[0], values[1], values[2], Lanes{}));
      put(out + 2 * W, interleaved<2>(values[0], values[1], values[2], Lanes{}));
    } else {
      for (int k = 0; k < C; ++k) put(out + k * channel, values[k]);
    }
  }

  template <class Out>
  void erase(const float* q) const {
    const int64_t pixel = channels_last ? C : 1, channel = channels_last ? 1 : plane;
    for (int64_t k = 0; k < C; ++k)
      for (int64_t y = 0; y < int64_t(q[kEraseHeight]); ++y)
        for (int64_t x = 0; x < int64_t(q[kEraseWidth]); ++x)
          reinterpret_cast<Out*>(first)[k * channel + ((int64_t(q[kEraseTop]) + y) * width +
                                                       int64_t(q[kEraseLeft]) + x) * pixel] = Out{};
  }

  const int64_t width, plane;
  const Element element;
  const bool channels_last;
  char* const first;  // of the view
  const float threshold;
  const bool streamed;
  float gain[3], bias[3];
};
