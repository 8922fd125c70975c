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

// Three vectors as one stretch of their lanes in turn: its vector number M.
template <int M, int... I>
FASTSSL_INLINE vf interleaved(vf a, vf b, vf c, Ints<I...>) {
  const vf two = FASTSSL_SHUFFLE(a, b, ((M * W + I) % 3 == 1 ? W : 0) + (M * W + I) / 3 ...);
  return FASTSSL_SHUFFLE(two, c, ((M * W + I) % 3 == 2 ? W + (M * W + I) / 3 : I)...);
}

template <int C>
struct Writer {
  const AugmentProblem& p;
  const float* q;
  const int64_t row;

  // W pixels from (y, x) on, or what the view has of them.
  FASTSSL_MEMBER void write(int64_t y, int64_t x, const Pixels<vf>& pixels) const {
    if (p.element == Element::bfloat16)
      write<BFloat16>(y, x, pixels);
    else if (p.element == Element::float16)
      write<Float16>(y, x, pixels);
    else
      write<float>(y, x, pixels);
  }

  void erase() const {
    if (p.element == Element::float32)
      erase<float>();
    else
      erase<BFloat16>();  // whose zero is float16's
  }

 private:
  template <class Out>
  FASTSSL_MEMBER Out* first() const {
    return reinterpret_cast<Out*>(p.out) + row * C * p.height * p.width;
  }

  template <class Out>
  FASTSSL_MEMBER void write(int64_t y, int64_t x, const Pixels<vf>& pixels) const {
    const vf threshold = splat(q[kSolarize]);
    const auto normalised = [&](vf x, int k) {
      return (x >= threshold ? 255 - x : x) * p.gain[k] + p.bias[k];
    };
    const vf values[3] = {normalised(pixels.red, 0), normalised(pixels.green, C / 2),
                          normalised(pixels.blue, C - 1)};
    const int64_t at = y * p.width + x, left = p.width - x;
    const int64_t pixel = p.channels_last ? C : 1, channel = p.channels_last ? 1 : p.height * p.width;
    Out* out = first<Out>() + at * pixel;
    if (left < W) {
      for (int k = 0; k < C; ++k) {
        Out last[W];
        put(last, values[k]);
        for (int64_t l = 0; l < left; ++l) out[k * channel + l * pixel] = last[l];
      }
    } else if (C == 3 && p.channels_last) {
      using Lanes = typename Count<W>::type;
      put(out, interleaved<0>(values[0], values[1], values[2], Lanes{}));
      put(out + W, interleaved<1>(values[0], values[1], values[2], Lanes{}));
      put(out + 2 * W, interleaved<2>(values[0], values[1], values[2], Lanes{}));
    } else {
      for (int k = 0; k < C; ++k) put(out + k * channel, values[k]);
    }
  }

  template <class Out>
  void erase() const {
    const int64_t pixel = p.channels_last ? C : 1, channel = p.channels_last ? 1 : p.height * p.width;
    for (int64_t k = 0; k < C; ++k)
      for (int64_t y = 0; y < int64_t(q[kEraseHeight]); ++y)
        for (int64_t x = 0; x < int64_t(q[kEraseWidth]); ++x)
          first<Out>()[k * channel +
                       ((int64_t(q[kEraseTop]) + y) * p.width + int64_t(q[kEraseLeft]) + x) * pixel] = Out{};
  }
};
