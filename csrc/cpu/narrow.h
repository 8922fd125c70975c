// Elements of every float type to and from those that are computed with; as vec.h, included for each
// instruction set inside a namespace of its own.

struct BFloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

FASTSSL_INLINE double widen(double x) { return x; }
FASTSSL_INLINE float widen(float x) { return x; }
FASTSSL_INLINE float widen(BFloat16 x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }
FASTSSL_INLINE float widen(Float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = uint32_t(x.bits & 0x7fff) << 13;
  const float scaled = __builtin_bit_cast(float, rest) * 0x1p112f;  // the exponents' biases differ
  const bool finite = rest < 0x0f800000;
  const uint32_t bits = finite ? __builtin_bit_cast(uint32_t, scaled) : rest | 0x7f800000;
  return __builtin_bit_cast(float, bits | sign);
}

// To the nearest, ties to even.
FASTSSL_INLINE void narrow(double x, double& out) { out = x; }
FASTSSL_INLINE void narrow(float x, float& out) { out = x; }
FASTSSL_INLINE void narrow(double x, float& out) { out = float(x); }
FASTSSL_INLINE void narrow(float x, BFloat16& out) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const uint32_t nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  out.bits = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : nearest);
}
FASTSSL_INLINE void narrow(float x, Float16& out) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x), size = bits & 0x7fffffff;
  const uint32_t normal = (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13;
  // 1/2 has the steps of float16's subnormals: adding it rounds to them.
  const float shifted = __builtin_bit_cast(float, size) + 0.5f;
  const uint32_t subnormal = __builtin_bit_cast(uint32_t, shifted) - (126u << 23);
  uint32_t nearest = size < (113u << 23) ? subnormal : normal;
  nearest = size >= 0x477ff000 ? 0x7c00 : nearest;  // 65520 and more round to infinity
  nearest = size > 0x7f800000 ? 0x7e00 : nearest;
  out.bits = uint16_t(nearest | (bits >> 16 & 0x8000));
}
// As torch does, by way of float.
FASTSSL_INLINE void narrow(double x, BFloat16& out) { narrow(float(x), out); }
FASTSSL_INLINE void narrow(double x, Float16& out) { narrow(float(x), out); }
