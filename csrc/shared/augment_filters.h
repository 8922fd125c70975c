// The filters of augment, in numbers: triangles that resize and Gaussians that blur. Included inside a
// namespace of each compiler and instruction set, which has FASTSSL_INLINE.

// Float arithmetic, and that of torch's uint8 path: weights of 15 bits, each pass rounded to a byte.
// `scaled` is a weight before it becomes a number; D is double or a vector of them.
template <class V>
struct FloatFilter {
  using vec = V;
  using number = float;
  static constexpr bool fixed = false;
  FASTSSL_INLINE int bits(double) { return 0; }
  template <class D>
  FASTSSL_INLINE D scaled(D w, int) { return w; }
  FASTSSL_INLINE vec finish(vec sum, int) { return sum; }
};
template <class V>
struct FixedFilter {
  using vec = V;
  using number = int32_t;
  static constexpr bool fixed = true;
  FASTSSL_INLINE int bits(double largest) {
    int b = 0;
    while (b < 22 && int(0.5 + largest * (1 << (b + 1))) < 1 << 15) ++b;
    return b;
  }
  template <class D>
  FASTSSL_INLINE D scaled(D w, int bits) { return w * double(1 << bits) + 0.5; }
  FASTSSL_INLINE vec finish(vec sum, int bits) {
    const vec byte = (sum + (1 << (bits - 1))) >> bits;
    return byte < 255 ? byte : vec{} + 255;
  }
};

// One side of an image: a target pixel is a weighed mean of the source's from begin to end, by a
// triangle about its centre that reaches a pixel of the coarser of the two to either side (antialiased,
// align_corners=False). Places are whole numbers of 2·target parts of a source pixel: nothing is rounded.
struct Triangle {
  int64_t centre, begin, end;
};

FASTSSL_INLINE int64_t half_width(int64_t source, int64_t target) {
  return 2 * (source > target ? source : target);
}

FASTSSL_INLINE int64_t most_weights(int64_t source, int64_t target) {
  const int64_t most = (half_width(source, target) + target - 1) / target;
  return most < source ? most : source;
}

FASTSSL_INLINE Triangle triangle_of(int64_t source, int64_t target, int64_t i) {
  const int64_t centre = source * (2 * i + 1), wide = half_width(source, target);
  const int64_t low = centre - wide + target, end = (centre + wide + target) / (2 * target);
  return {centre, low > 0 ? low / (2 * target) : 0, end < source ? end : source};
}

FASTSSL_INLINE double height_at(int64_t source, int64_t target, const Triangle& t, int64_t j) {
  const int64_t away = (2 * j + 1) * target - t.centre;
  const int64_t height = half_width(source, target) - (away < 0 ? -away : away);
  return height > 0 ? double(height) : 0;
}

FASTSSL_INLINE double exp_of(double x) {  // x ≤ 0; 1e-12 of it
  if (x < -700) return 0;
  double power = 1;
  for (int k = 16; k > 0; --k) power = 1 + power * (x / 64) / k;
  for (int k = 0; k < 6; ++k) power *= power;
  return power;
}

// Pixels to either side that a Gaussian needs: what lies beyond 4.75σ, two millionths, is left out.
FASTSSL_INLINE int64_t blur_radius(int64_t taps, float sigma) {
  const double reach = 4.75 * double(sigma) + 0.5;
  return double(taps / 2) > reach ? int64_t(reach) : taps / 2;
}

FASTSSL_INLINE double gaussian(int64_t i, float sigma) {
  const double at = double(i) / double(sigma);
  return exp_of(-at * at / 2);
}

FASTSSL_INLINE int64_t reflected(int64_t i, int64_t n) {
  i = i < 0 ? -i : i;
  return i < n ? i : 2 * (n - 1) - i;
}
