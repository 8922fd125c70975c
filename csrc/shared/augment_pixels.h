// What is done to a pixel, or to a vector of them: V is float or a vector of floats. Included inside a
// namespace of each compiler and instruction set, which has FASTSSL_INLINE and, for its V,
//   whole_of(x)     without its fraction; |x| < 2^31
//   apart(x)        a product that is rounded by itself: what it is added to cannot take it in. Whole
//                   numbers are cut off, where a last bit decides, and torch's sums are (rounded
//                   product) + (product, in one rounding)
//   fused(a, b, c)  a·b + c in one rounding
//   larger(a, b), smaller(a, b)
// Pixels are in units of 1/255. fastssl/reference/augment.py says what each step is.

template <class V>
struct Pixels {
  V red, green, blue;
};

template <class V>
FASTSSL_INLINE V clamp_to(V x, float top) {
  return smaller(larger(x, V{}), V{} + top);
}

template <class V>
FASTSSL_INLINE V rounded(V x) {  // to even; |x| < 2^22
  const V magic = V{} + 12582912.f;
  return x + magic - magic;
}

template <class V>
FASTSSL_INLINE V grey_of(const Pixels<V>& x) {
  const V red_green = fused(V{} + 0.587f, x.green, apart(0.2989f * x.red));
  return fused(V{} + 0.114f, x.blue, red_green);
}

// Of six numbers the one that is meant in a sector: 0 from red to yellow, 1 from there to green, …
template <class V>
FASTSSL_INLINE V of_sector(V sector, V s0, V s1, V s2, V s3, V s4, V s5) {
  const V first = sector < 1 ? s0 : sector < 2 ? s1 : s2;
  const V second = sector < 4 ? s3 : sector < 5 ? s4 : s5;
  return sector < 3 ? first : second;
}

// With neither sectors nor HSV: a colour is the lowest and, by its place in the circle, some of the
// chroma. What float32 rounds apart, the same as below.
template <class V>
FASTSSL_INLINE Pixels<V> turned_quickly(const Pixels<V>& x, float turn) {
  const V high = larger(larger(x.red, x.green), x.blue), low = smaller(smaller(x.red, x.green), x.blue);
  const V chroma = high - low;
  const auto is_red = high == x.red, is_green = high == x.green;
  const V ahead = is_red ? x.green - x.blue : is_green ? x.blue - x.red : x.red - x.green;
  const V third = is_red ? V{} : is_green ? V{} + 2 : V{} + 4;
  V at = ahead / larger(chroma, V{} + 1e-20f) + (third + 6 * turn);  // -4 to 8
  at = at < 0 ? at + 6 : at;
  at = at < 6 ? at : at - 6;
  const auto colour = [&](V share) { return fused(chroma, clamp_to(share, 1), low); };
  return {colour(larger(at - 4, 2 - at)), colour(smaller(at, 4 - at)), colour(smaller(at - 2, 6 - at))};
}

// As torchvision rounds it, for whole numbers are cut off of it. In [0, 1].
template <class V>
FASTSSL_INLINE Pixels<V> turned_hue(const Pixels<V>& x, float turn) {
  V high = x.red > x.green ? x.red : x.green;
  high = high > x.blue ? high : x.blue;
  V low = x.red < x.green ? x.red : x.green;
  low = low < x.blue ? low : x.blue;
  const V chroma = high - low, one = V{} + 1;
  const V divisor = chroma > 0 ? chroma : one;
  // From the highest, how far below are the one before it and the one after, in the circle of three.
  const auto is_red = high == x.red, is_green = high == x.green;
  const V before = is_red ? x.blue : is_green ? x.red : x.green;
  const V after = is_red ? x.green : is_green ? x.blue : x.red;
  const V third = is_red ? V{} : is_green ? V{} + 2 : V{} + 4;
  const V sixths = (high - before) / divisor + third - (high - after) / divisor;  // -1 to 5
  V hue = apart(sixths * float(1.0 / 6)) + 1;
  hue = (hue < 1 ? hue : hue - 1) + turn;  // -1/2 to 3/2
  hue = hue < 0 ? hue + 1 : hue < 1 ? hue : hue - 1;
  const V at = apart(6 * hue);
  const V whole = whole_of(at), sector = whole < 6 ? whole : V{};
  const V saturation = chroma / (chroma > 0 ? high : one);
  const V beyond = apart(saturation * (at - whole)), flat = 1 - saturation;
  const V falling = (1 - beyond) * high, rising = (beyond + flat) * high;
  return {of_sector(sector, high, falling, flat * high, flat * high, rising, high),
          of_sector(sector, rising, high, high, falling, flat * high, flat * high),
          of_sector(sector, flat * high, flat * high, rising, high, high, falling)};
}

enum StepKind { kToBrightness, kToContrast, kToSaturation, kToHue, kToGrey };

struct Step {
  StepKind kind;
  float amount;
  float mean;  // of grey, which contrast turns about
  bool ready;
};

struct Steps {
  Step list[6];
  int count;
};

FASTSSL_INLINE void add_step(Steps& steps, StepKind kind, float amount) {
  if (kind != kToHue || amount != 0)
    steps.list[steps.count++] = {kind, amount, 0, kind != kToContrast};
}

FASTSSL_INLINE void list_steps(const float* p, Steps& steps) {
  steps.count = 0;
  if (p[kGrey] == 2) add_step(steps, kToGrey, 1);
  if (p[kOrder] >= 0) {  // a row of the permutations of 0 … 3 in lexicographic order
    int left[4] = {0, 1, 2, 3}, rank = int(p[kOrder]), radix = 6;
    for (int size = 4; size > 0; --size) {
      const int at = rank / radix;
      add_step(steps, StepKind(left[at]), p[kBrightness + left[at]]);
      for (int i = at; i + 1 < size; ++i) left[i] = left[i + 1];
      rank %= radix;
      radix = size > 2 ? radix / (size - 1) : 1;
    }
  }
  if (p[kGrey] == 1) add_step(steps, kToGrey, 1);
}

template <bool quantized, class V>
FASTSSL_INLINE V cut(V x) {
  return quantized ? whole_of(x) : x;
}

template <bool quantized, class V>
FASTSSL_INLINE V blend(V x, V other, float share) {
  return cut<quantized>(clamp_to(fused(V{} + (1 - share), other, apart(share * x)), 255));
}

template <bool quantized, class V>
FASTSSL_INLINE Pixels<V> changed(Pixels<V> x, const Step& step) {
  switch (step.kind) {
    case kToBrightness:
    case kToContrast:
    case kToSaturation: {
      const V other = step.kind == kToBrightness ? V{}
                      : step.kind == kToContrast ? V{} + step.mean
                                                 : cut<quantized>(grey_of(x));
      return {blend<quantized>(x.red, other, step.amount), blend<quantized>(x.green, other, step.amount),
              blend<quantized>(x.blue, other, step.amount)};
    }
    case kToHue: {
      if (!quantized) return turned_quickly(x, step.amount);
      constexpr float unit = 1.f / 255, scale = 256 - 1e-3f;
      x = turned_hue(Pixels<V>{x.red * unit, x.green * unit, x.blue * unit}, step.amount);
      return {cut<quantized>(x.red * scale), cut<quantized>(x.green * scale),
              cut<quantized>(x.blue * scale)};
    }
    default: {
      const V grey = cut<quantized>(grey_of(x));
      return {grey, grey, grey};
    }
  }
}
