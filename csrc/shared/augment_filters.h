// The filters of augment, in numbers: triangles that resize and Gaussians that blur. Included inside a
// namespace of each compiler and instruction set, which has FASTSSL_INLINE.

// Float arithmetic, and that of torch's uint8 path: weights of 15 bits, each pass rounded to a byte.
template <class V>
struct FloatFilter {
  using vec = V;
  using number = float;
  static constexpr bool fixed = false;
  FASTSSL_INLINE int bits(double) { return 0; }
  FASTSSL_INLINE number weight(double w, int) { return number(w); }
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
  FASTSSL_INLINE number weight(double w, int bits) { return number(w * (1 << bits) + 0.5); }
  FASTSSL_INLINE vec finish(vec sum, int bits) {
    const vec byte = (sum + (1 << (bits - 1))) >> bits;
    return byte < 255 ? byte : vec{} + 255;
  }
};

// One side of an image: a target pixel is a weighed mean of the source's from begin to end, by a
// triangle about its centre that reaches a pixel of the coarser of the two to either side (antialiased,
// align_corners=False).
struct Triangle {
  double centre, wide;
  int64_t begin, end;
};

FASTSSL_INLINE Triangle triangle_of(int64_t source, int64_t target, int64_t i) {
  const double scale = double(source) / double(target), wide = scale > 1 ? scale : 1;
  const double centre = scale * (double(i) + 0.5), low = centre - wide + 0.5;
  const int64_t end = int64_t(centre + wide + 0.5);
  return {centre, wide, low > 0 ? int64_t(low) : 0, end < source ? end : source};
}

FASTSSL_INLINE double height_at(const Triangle& t, int64_t j) {
  double away = (double(j) + 0.5 - t.centre) / t.wide;
  away = away < 0 ? -away : away;
  return away < 1 ? 1 - away : 0;
}

FASTSSL_INLINE double exp_of(double x) {  // x ≤ 0; 1e-12 of it
  if (x < -700) return 0;
  double power = 1;
  for (int k = 16; k > 0; --k) power = 1 + power * (x / 64) / k;
  for (int k = 0; k < 6; ++k) power *= power;
  return power;
}

// Pixels to either side that a Gaussian needs: what lies beyond 5σ, a millionth, is left out.
FASTSSL_INLINE int64_t blur_radius(int64_t taps, float sigma) {
  const double reach = 5 * double(sigma) + 1;
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
