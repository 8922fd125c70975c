// Parameters kept within what they may be, as fastssl/ops/augment.py says it. Included inside a
// namespace of each compiler, which has FASTSSL_INLINE.

FASTSSL_INLINE float bounded(float x, float low, float high) {  // NaN counts as 0
  x = x == x ? x : 0;
  x = x > low ? x : low;
  return x < high ? x : high;
}

// A stretch of whole pixels, at least so many, within so many.
FASTSSL_INLINE void bound_stretch(const float* from, float* to, int begin, int length, float least,
                                  float limit) {
  to[length] = bounded(floorf(from[length]), least, limit);
  to[begin] = bounded(floorf(from[begin]), 0, limit - to[length]);
}

// Of a view of high × wide pixels of an image of h × w.
FASTSSL_INLINE void bound_parameters(const float* from, int64_t h, int64_t w, int64_t high,
                                     int64_t wide, float* to) {
  constexpr float infinity = __builtin_huge_valf(), most = 1e6f;
  bound_stretch(from, to, kTop, kHeight, 1, float(h));
  bound_stretch(from, to, kLeft, kWidth, 1, float(w));
  bound_stretch(from, to, kEraseTop, kEraseHeight, 0, float(high));
  bound_stretch(from, to, kEraseLeft, kEraseWidth, 0, float(wide));
  to[kFlip] = bounded(from[kFlip], 0, 1);
  to[kFlipVertical] = bounded(from[kFlipVertical], 0, 1);
  to[kTurns] = high == wide ? bounded(from[kTurns], 0, 3) : 0;
  to[kOrder] = bounded(from[kOrder], -1, 23);
  to[kBrightness] = bounded(from[kBrightness], 0, most);
  to[kContrast] = bounded(from[kContrast], 0, most);
  to[kSaturation] = bounded(from[kSaturation], 0, most);
  to[kHue] = bounded(from[kHue], -0.5f, 0.5f);
  to[kGrey] = bounded(from[kGrey], 0, 2);
  to[kSigma] = bounded(from[kSigma], 0, most);
  to[kSolarize] = bounded(from[kSolarize], 0, infinity);
}
