// A crop of an image, resized by a triangle filter (antialiased, align_corners=False): rows first, then
// columns, in float or as torch has it for bytes, in fixed point with bytes between.

#include "shared/augment_filters.h"

FASTSSL_INLINE int64_t reach_of(int64_t source, int64_t target) {  // most weights a pixel may have
  return source <= target ? 3 : 2 * (source / target + 1) + 2;
}

// Each target pixel's weights of source pixels, as many for every one: where it takes less, 0.
template <class Filter>
struct Weights {
  using number = typename Filter::number;
  int64_t count = 0;
  number* weights;  // [target, count]
  int32_t* first;   // [target], so that all of count are within the source
  int bits = 0;

  static int64_t floats(int64_t source, int64_t target) {
    return target * (reach_of(source, target) + 1);
  }

  Weights(int64_t source, int64_t target, double* row, float* memory)
      : weights(reinterpret_cast<number*>(memory)),
        first(reinterpret_cast<int32_t*>(memory + target * reach_of(source, target))) {
    double largest = 0, sum = 0;
    const auto fill = [&](const Triangle& t) {  // the row of a pixel
      sum = 0;
      for (int64_t j = t.begin; j < t.end; ++j) sum += row[j - t.begin] = height_at(t, j);
    };
    for (int64_t i = 0; i < target; ++i) {
      const Triangle t = triangle_of(source, target, i);
      count = count < t.end - t.begin ? t.end - t.begin : count;
      if (!Filter::fixed) continue;
      fill(t);
      for (int64_t j = 0; j < t.end - t.begin; ++j)
        largest = row[j] / sum > largest ? row[j] / sum : largest;
    }
    bits = Filter::bits(largest);
    for (int64_t i = 0; i < target; ++i) {
      const Triangle t = triangle_of(source, target, i);
      fill(t);
      first[i] = int32_t(lower(t.begin, source - count));
      number* to = weights + i * count;
      for (int64_t j = 0; j < count; ++j) to[j] = 0;
      for (int64_t j = t.begin; j < t.end; ++j)
        to[j - first[i]] = Filter::weight(row[j - t.begin] / sum, bits);
    }
  }
};

FASTSSL_INLINE void store_some(float* to, vf x, int64_t count) {
  if (count >= W)
    store(to, x);
  else
    for (int64_t l = 0; l < count; ++l) to[l] = x[l];
}

struct Crop {
  const uint8_t* data;  // its first pixel
  int64_t height, width, channels, row, pixel, channel;  // strides in bytes
  bool flip, flip_vertical;
};

constexpr int64_t kStripe = 32;  // rows of the view that are made at a time

FASTSSL_INLINE int64_t stripe_rows(int64_t source, int64_t target) {
  return round_up(lower(source, kStripe * source / target + 2 + reach_of(source, target)), W);
}

template <class Filter>
static int64_t resize_floats(int64_t sh, int64_t sw, int64_t c, int64_t h, int64_t w) {
  return Weights<Filter>::floats(sw, w) + Weights<Filter>::floats(sh, h) +
         round_up(sw * c, W) * W + (round_up(w, W) * (W + c * stripe_rows(sh, h))) +
         2 * (reach_of(sw, w) + reach_of(sh, h)) + 4 * W;
}

typedef uint16_t half_v __attribute__((vector_size(2 * W)));
typedef uint8_t bytes_v __attribute__((vector_size(W)));
typedef bytes_v bytes_v_unaligned __attribute__((aligned(1), may_alias));

// W rows of the crop, from one on, as columns: tile[j] has the j-th byte of each; what is below the
// crop repeats its last row.
template <class Filter>
FASTSSL_INLINE void crop_tile(const Crop& crop, int64_t row, const uint8_t* plane, int64_t bytes,
                              typename Filter::vec* tile) {
  using number = typename Filter::number;
  const uint8_t* from[W];
  for (int r = 0; r < W; ++r) from[r] = plane + lower(row + r, crop.height - 1) * crop.row;
  int64_t j = 0;
  for (; j + W <= bytes; j += W) {
    vf v[W];
    for (int r = 0; r < W; ++r) {
      const auto bytes = *reinterpret_cast<const bytes_v_unaligned*>(from[r] + j);
      const auto wide = __builtin_convertvector(__builtin_convertvector(bytes, half_v), vi);
      v[r] = (vf)__builtin_convertvector(wide, typename Filter::vec);
    }
    transpose(v);
    for (int l = 0; l < W; ++l) tile[j + l] = (typename Filter::vec)v[l];
  }
  for (; j < bytes; ++j)
    for (int r = 0; r < W; ++r) reinterpret_cast<number*>(tile + j)[r] = number(from[r][j]);
}

// A crop's pixels, 0 to 255, at another size: planes [h, w], so many floats apart.
template <class Filter>
static void resize(const Crop& crop, int64_t h, int64_t w, float* out, int64_t plane, float* memory) {
  using vec = typename Filter::vec;
  using number = typename Filter::number;
  const int64_t c = crop.channels, pitch = round_up(w, W);
  const int64_t rows = stripe_rows(crop.height, h);
  auto* tile = reinterpret_cast<vec*>(memory);                  // [bytes, W]
  memory += round_up(crop.width * c, W) * W;
  auto* turned = reinterpret_cast<vec*>(memory);                // [pitch, W]
  memory += pitch * W;
  auto* narrowed = reinterpret_cast<number*>(memory);           // [C, rows, pitch]
  memory += c * rows * pitch;
  auto* one = reinterpret_cast<double*>(memory);
  memory += 2 * (reach_of(crop.width, w) + reach_of(crop.height, h));
  const Weights<Filter> across(crop.width, w, one, memory);
  memory += Weights<Filter>::floats(crop.width, w);
  const Weights<Filter> down(crop.height, h, one, memory);

  const bool planar = crop.pixel == 1;
  const int64_t step = planar ? 1 : c;
  for (int64_t x = w; x < pitch; ++x) turned[x] = vec{};
  for (int64_t y0 = 0; y0 < h; y0 += kStripe) {
    const int64_t y1 = lower(y0 + kStripe, h);
    const int64_t begin = down.first[y0], end = down.first[y1 - 1] + down.count;
    for (int64_t row = begin; row < end; row += W) {
      for (int64_t k = 0; k < c; ++k) {
        if (planar || k == 0)
          crop_tile<Filter>(crop, row, crop.data + (planar ? k * crop.channel : 0), crop.width * step,
                            tile);
        const vec* column = tile + (planar ? 0 : k);
        for (int64_t x = 0; x < w; ++x) {
          const int64_t at = crop.flip ? w - 1 - x : x;
          const number* weight = across.weights + at * across.count;
          const vec* from = column + across.first[at] * step;
          vec sum{};
          for (int64_t j = 0; j < across.count; ++j) sum += weight[j] * from[j * step];
          turned[x] = Filter::finish(sum, across.bits);
        }
        number* to = narrowed + (k * rows + row - begin) * pitch;
        for (int64_t x = 0; x < pitch; x += W) {
          vf v[W];
          for (int l = 0; l < W; ++l) v[l] = (vf)turned[x + l];
          transpose(v);
          for (int r = 0; r < W; ++r) store(reinterpret_cast<real*>(to + r * pitch + x), v[r]);
        }
      }
    }
    for (int64_t k = 0; k < c; ++k) {
      for (int64_t y = y0; y < y1; ++y) {
        const number* weight = down.weights + y * down.count;
        const number* from = narrowed + (k * rows + down.first[y] - begin) * pitch;
        float* to = out + k * plane + (crop.flip_vertical ? h - 1 - y : y) * w;
        for (int64_t x = 0; x < w; x += W) {
          vec sum{};
          for (int64_t j = 0; j < down.count; ++j)
            sum += weight[j] * (vec)load(reinterpret_cast<const real*>(from + j * pitch + x));
          const vf value = __builtin_convertvector(Filter::finish(sum, down.bits), vf);
          store_some(to + x, value, w - x);
        }
      }
    }
  }
}
