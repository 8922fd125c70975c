// One view: resized into planes of floats, 0 to 255, then changed in as few passes as contrast, which
// needs a mean first, and blur, which needs neighbours, allow. fastssl/reference/augment.py says what
// each step is.

FASTSSL_INLINE vf whole_of(vf x) {
  return __builtin_convertvector(__builtin_convertvector(x, vi), vf);
}

FASTSSL_INLINE vf apart(vf x) {
#if defined(__x86_64__)
  asm("" : "+x"(x));
#endif
  return x;
}

// By double where the instruction set may have no such instruction.
FASTSSL_INLINE vf fused(vf a, vf b, vf c) {
  if constexpr (W > 4) return a * b + c;
  const vd wide = __builtin_convertvector(a, vd) * __builtin_convertvector(b, vd);
  return __builtin_convertvector(wide + __builtin_convertvector(c, vd), vf);
}

#include "shared/augment_pixels.h"

template <bool quantized>
struct Choose {
  using filter = FloatFilter<vf>;
};
template <>
struct Choose<true> {
  using filter = FixedFilter<vi>;
};

// Steps from one on, up to the end or to a contrast that still needs its mean, which is taken on the
// way. A grey image has one plane, for all three colours.
template <bool quantized>
static int pass(Steps& steps, int from, float* planes, int64_t colours, int64_t plane, int64_t n) {
  int end = from;
  while (end < steps.count && steps.list[end].ready) ++end;
  const bool measured = end < steps.count;
  double total = 0;
  vf part{};
  for (int64_t i = 0; i < n; i += W) {
    Pixels<vf> x;
    x.red = load(planes + i);
    x.green = colours == 3 ? load(planes + plane + i) : x.red;
    x.blue = colours == 3 ? load(planes + 2 * plane + i) : x.red;
    for (int s = from; s < end; ++s)
      if (colours == 3 || steps.list[s].kind <= kToContrast) x = changed<quantized>(x, steps.list[s]);
    if (end > from) {
      store(planes + i, x.red);
      if (colours == 3) store(planes + plane + i, x.green);
      if (colours == 3) store(planes + 2 * plane + i, x.blue);
    }
    if (!measured) continue;
    const vf grey = colours == 3 ? cut<quantized>(grey_of(x)) : x.red;
    if (i + W <= n)
      part += grey;
    else
      for (int64_t l = 0; l < n - i; ++l) total += grey[l];
    if (i / W % 64 == 63) {  // few enough that whole numbers stay exact
      total += sum(part);
      part = vf{};
    }
  }
  if (measured) {
    steps.list[end].mean = float((total + sum(part)) / double(n));
    steps.list[end].ready = true;
  }
  return end;
}

// The sum of so many rows of two vectors, each by its weight.
FASTSSL_INLINE void weighed(const float* const* rows, int64_t at, const float* weights, int64_t count,
                            vf& first, vf& second) {
  first = second = vf{};
  for (int64_t j = 0; j < count; ++j) {
    const vf weight = splat(weights[j]);
    first += weight * load(rows[j] + at);
    second += weight * load(rows[j] + at + W);
  }
}

// A Gaussian along rows, then along columns.
template <bool quantized>
static void blur(float* x, int64_t h, int64_t w, int64_t taps, float sigma, float* memory) {
  const int64_t r = blur_radius(taps, sigma);
  float* weights = memory;  // [2r + 1]
  memory += round_up(taps, W);
  double sum = 0;
  for (int pass = 0; pass < 2; ++pass)
    for (int64_t i = -r; i <= r; ++i) {
      const double weight = gaussian(i, sigma);
      if (pass)
        weights[i + r] = float(weight / sum);
      else
        sum += weight;
    }
  auto** rows = reinterpret_cast<const float**>(memory);  // [2r + 1]
  memory += 2 * round_up(taps, W);
  const int64_t pitch = round_up(w, 2 * W);
  float* row = memory;                                // [w + 2r], then as much as a vector reads
  float* across = row + round_up(pitch + 2 * r, W);  // [h, pitch]
  vf first, second;
  for (int64_t j = 0; j <= 2 * r; ++j) rows[j] = row + j;
  for (int64_t y = 0; y < h; ++y) {
    const float* from = x + y * w;
    for (int64_t i = 0; i < w; ++i) row[i + r] = from[i];
    for (int64_t i = 0; i < r; ++i) {
      row[i] = from[reflected(i - r, w)];
      row[w + r + i] = from[reflected(w + i, w)];
    }
    for (int64_t i = 0; i < w; i += 2 * W) {
      weighed(rows, i, weights, 2 * r + 1, first, second);
      store(across + y * pitch + i, first);
      store(across + y * pitch + i + W, second);
    }
  }
  for (int64_t y = 0; y < h; ++y) {
    for (int64_t j = 0; j <= 2 * r; ++j) rows[j] = across + reflected(y + j - r, h) * pitch;
    for (int64_t i = 0; i < w; i += 2 * W) {
      weighed(rows, i, weights, 2 * r + 1, first, second);
      store_some(x + y * w + i, quantized ? rounded(first) : first, w - i);
      if (i + W < w) store_some(x + y * w + i + W, quantized ? rounded(second) : second, w - i - W);
    }
  }
}

// Quarter turns, counter-clockwise, of a square.
static void turn(float* x, int64_t side, int turns, float* memory) {
  for (; turns > 0; --turns) {
    for (int64_t y = 0; y < side; ++y)
      for (int64_t i = 0; i < side; ++i) memory[(side - 1 - i) * side + y] = x[y * side + i];
    for (int64_t i = 0; i < side * side; ++i) x[i] = memory[i];
  }
}

// Vectors as they are written, to the nearest.
typedef uint32_t bits_v __attribute__((vector_size(4 * W)));
typedef half_v half_v_unaligned __attribute__((aligned(2), may_alias));

FASTSSL_INLINE void put(float* to, vf x) { store(to, x); }
FASTSSL_INLINE void put(BFloat16* to, vf x) {
  const bits_v bits = (bits_v)x, nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  *reinterpret_cast<half_v_unaligned*>(to) =
      __builtin_convertvector(x == x ? nearest : bits_v{} + 0x7fc0, half_v);
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

template <class Out>
static void write(const AugmentProblem& p, const float* q, int64_t row, const float* planes,
                  int64_t plane) {
  using Lanes = typename Count<W>::type;
  const int64_t c = p.channels, n = p.height * p.width, whole = n / W * W;
  auto* out = reinterpret_cast<Out*>(p.out) + row * c * n;
  const float threshold = q[kSolarize];
  const auto normalised = [&](int64_t k, int64_t i) {
    const vf x = load(planes + k * plane + i);
    return (x >= threshold ? 255 - x : x) * p.gain[k] + p.bias[k];
  };
  const bool woven = p.channels_last && c == 3;
  for (int64_t i = 0; i < whole && woven; i += W) {
    const vf red = normalised(0, i), green = normalised(1, i), blue = normalised(2, i);
    put(out + 3 * i, interleaved<0>(red, green, blue, Lanes{}));
    put(out + 3 * i + W, interleaved<1>(red, green, blue, Lanes{}));
    put(out + 3 * i + 2 * W, interleaved<2>(red, green, blue, Lanes{}));
  }
  const int64_t pixel = p.channels_last ? c : 1, channel = p.channels_last ? 1 : n;
  for (int64_t k = 0; k < c; ++k) {
    Out* to = out + k * channel;
    for (int64_t i = 0; i < whole && !woven; i += W) put(to + i, normalised(k, i));
    if (whole < n) {
      Out last[W];
      put(last, normalised(k, whole));
      for (int64_t l = 0; l < n - whole; ++l) to[(whole + l) * pixel] = last[l];
    }
    for (int64_t y = 0; y < int64_t(q[kEraseHeight]); ++y)
      for (int64_t i = 0; i < int64_t(q[kEraseWidth]); ++i)
        to[((int64_t(q[kEraseTop]) + y) * p.width + int64_t(q[kEraseLeft]) + i) * pixel] = Out{};
  }
}

static int64_t plane_of(const AugmentProblem& p) { return round_up(p.height * p.width, W); }

static int64_t augment_scratch(const AugmentProblem& p) {
  const int64_t pitch = round_up(p.width, 2 * W);
  int64_t most = 3 * round_up(p.taps, W) + round_up(pitch + p.taps, W) + p.height * pitch;  // blur, turns
  for (int64_t i = 0; i < p.rows; ++i) {
    const float* q = p.parameters + i * kAugmentColumns;
    const auto h = int64_t(q[kHeight]), w = int64_t(q[kWidth]);
    const int64_t needed = p.quantized ? resize_floats<FixedFilter<vi>>(h, w, p.channels, p.height, p.width)
                                       : resize_floats<FloatFilter<vf>>(h, w, p.channels, p.height, p.width);
    most = most < needed ? needed : most;
  }
  return p.channels * plane_of(p) + round_up(most, W);
}

template <bool quantized>
static void view(const AugmentProblem& p, int64_t row, float* planes) {
  using Filter = typename Choose<quantized>::filter;
  const float* q = p.parameters + row * kAugmentColumns;
  const int64_t image = row % p.images, c = p.channels, plane = plane_of(p);
  const int64_t h = p.sizes[2 * image], w = p.sizes[2 * image + 1];
  float* memory = planes + c * plane;
  Crop crop{.height = int64_t(q[kHeight]),
            .width = int64_t(q[kWidth]),
            .channels = c,
            .row = p.planar ? w : w * c,
            .pixel = p.planar ? 1 : c,
            .channel = p.planar ? h * w : 1,
            .flip = q[kFlip] != 0,
            .flip_vertical = q[kFlipVertical] != 0};
  crop.data = p.data + p.offsets[image] + int64_t(q[kTop]) * crop.row + int64_t(q[kLeft]) * crop.pixel;
  resize<Filter>(crop, p.height, p.width, planes, plane, memory);
  for (int64_t k = 0; k < c && q[kTurns] != 0; ++k)
    turn(planes + k * plane, p.height, int(q[kTurns]), memory);
  Steps steps;
  list_steps(q, steps);
  for (int at = 0; at < steps.count;)
    at = pass<quantized>(steps, at, planes, c, plane, p.height * p.width);
  for (int64_t k = 0; k < c && q[kSigma] != 0; ++k)
    blur<quantized>(planes + k * plane, p.height, p.width, p.taps, q[kSigma], memory);
  if (p.element == Element::bfloat16)
    write<BFloat16>(p, q, row, planes, plane);
  else if (p.element == Element::float16)
    write<Float16>(p, q, row, planes, plane);
  else
    write<float>(p, q, row, planes, plane);
}

static void augment_view(const AugmentProblem& p, int64_t row, float* scratch) {
  if (p.quantized)
    view<true>(p, row, scratch);
  else
    view<false>(p, row, scratch);
}
