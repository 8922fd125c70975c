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
  return smaller(larger(x, V{}), top - V{});
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

// Without HSV. About the circle of hues a channel is a trapezoid, high for two sixths and low for two:
// what 2·channel − middle is, held within low and high. Up to a sixth further along, that has moved by as
// much of the chroma: up where the channel after it is the smaller of the others, else down.
template <class V>
FASTSSL_INLINE Pixels<V> turned_a_little(const Pixels<V>& x, float sixths) {
  const V most = larger(x.red, x.green), least = smaller(x.red, x.green);
  const V high = larger(most, x.blue), low = smaller(least, x.blue);
  const V middle = larger(least, smaller(most, x.blue));
  const V up = sixths * (high - low), twice = 2 * up, below = middle - up;
  const auto colour = [&](V x, V after, V before) {
    const V raised = 2 * x - below;
    return smaller(larger(before > after ? raised : raised - twice, low), high);
  };
  return {colour(x.red, x.green, x.blue), colour(x.green, x.blue, x.red),
          colour(x.blue, x.red, x.green)};
}

// 0 to 5: half the circle on, channels are upside down, and a third on, they are the next ones.
template <class V>
FASTSSL_INLINE Pixels<V> turned_whole(Pixels<V> x, int sixths) {
  if (sixths % 2 == 1) {
    const V both = larger(larger(x.red, x.green), x.blue) + smaller(smaller(x.red, x.green), x.blue);
    x = {both - x.red, both - x.green, both - x.blue};
    sixths = (sixths + 3) % 6;
  }
  if (sixths == 2) return {x.blue, x.red, x.green};
  return sixths == 4 ? Pixels<V>{x.green, x.blue, x.red} : x;
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
FASTSSL_INLINE V brightened(V x, float share) {
  return cut<quantized>(smaller(apart(share * x), V{} + 255));
}

template <bool quantized, class V>
FASTSSL_INLINE Pixels<V> blended(const Pixels<V>& x, V other, float share) {
  const V rest = (1 - share) - V{}, added = rest * other;
  const auto blend = [&](V x) {
    const V sum = quantized ? fused(rest, other, apart(share * x)) : fused(share - V{}, x, added);
    return cut<quantized>(clamp_to(sum, 255));
  };
  return {blend(x.red), blend(x.green), blend(x.blue)};
}

// N at a time, for they do not wait for each other.
template <bool quantized, int N, class V>
FASTSSL_INLINE void turn_hue(Pixels<V> (&pixels)[N], float turn) {
  if (quantized) {
    constexpr float unit = 1.f / 255, scale = 256 - 1e-3f;
    for (Pixels<V>& x : pixels) {
      x = turned_hue(Pixels<V>{x.red * unit, x.green * unit, x.blue * unit}, turn);
      x = {whole_of(x.red * scale), whole_of(x.green * scale), whole_of(x.blue * scale)};
    }
    return;
  }
  const int sixths = int(6 * turn);
  if (sixths != 0)
    for (Pixels<V>& x : pixels) x = turned_whole(x, sixths < 0 ? sixths + 6 : sixths);
  for (Pixels<V>& x : pixels) x = turned_a_little(x, 6 * turn - float(sixths));
}

template <bool quantized, int N, class V>
FASTSSL_INLINE void change(Pixels<V> (&pixels)[N], const Step& step) {
  const float share = step.amount;
  switch (step.kind) {
    case kToBrightness:
      for (Pixels<V>& x : pixels)
        x = {brightened<quantized>(x.red, share), brightened<quantized>(x.green, share),
             brightened<quantized>(x.blue, share)};
      return;
    case kToContrast:
      for (Pixels<V>& x : pixels) x = blended<quantized>(x, step.mean - V{}, share);
      return;
    case kToSaturation:
      for (Pixels<V>& x : pixels) x = blended<quantized>(x, cut<quantized>(grey_of(x)), share);
      return;
    case kToHue:
      return turn_hue<quantized>(pixels, share);
    default:
      for (Pixels<V>& x : pixels) {
        const V grey = cut<quantized>(grey_of(x));
        x = {grey, grey, grey};
      }
  }
}
