// A crop of an image, resized by a triangle filter (antialiased, align_corners=False): rows first, then
// columns, in float or as torch has it for bytes, in fixed point with bytes between. A row of the view
// is a sum of a few narrowed rows of the crop, which wait in a ring that the cache holds.

#include "shared/augment_filters.h"

FASTSSL_INLINE vf load_number(const float* p) { return load(p); }
FASTSSL_INLINE vi load_number(const int32_t* p) { return (vi)load(reinterpret_cast<const float*>(p)); }
FASTSSL_INLINE void put(float* p, vf x) { store(p, x); }
FASTSSL_INLINE void put(int32_t* p, vi x) { store(reinterpret_cast<float*>(p), (vf)x); }

typedef uint32_t bits_v __attribute__((vector_size(4 * W)));

// Of one side of the view, each pixel's weights of the crop's, as many for every one: where it takes
// less, 0. Lanes beyond the side are as its last.
template <class Filter>
struct Weights {
  using number = typename Filter::number;
  using vec = typename Filter::vec;
  const int64_t source, target;
  const bool mirrored;
  int32_t* const first;  // [target], where its weights begin, all of count within the crop
  number* const table;   // [target / W, count, W]; or, not lanewise, [target, wide]
  const int64_t count;
  int64_t wide, span = 0;  // span: the most pixels that a vector of these needs
  bool lanewise;
  int bits = 0;

  static int64_t floats(int64_t source, int64_t target) {
    return padded(target) * (round_up(most_weights(source, target), W) + 1);
  }

  // Where a vector of pixels cannot be picked from four of the crop's, `dots` has each take its own.
  Weights(int64_t source, int64_t target, bool mirrored, bool dots, float* memory)
      : source(source),
        target(target),
        mirrored(mirrored),
        first(reinterpret_cast<int32_t*>(memory)),
        table(reinterpret_cast<number*>(memory + padded(target))),
        count(most_weights(source, target)) {
    // As triangle_of has it: what is added is less than any fraction and more than what rounds.
    const int64_t origin = source - half_width(source, target) + target;
    for (int64_t i = 0; i < padded(target); i += W) {
      vi begin;
      if (source * target < 1 << 18) {
        const vi low = places(i) * int32_t(2 * source) + int32_t(origin);
        const vf share = splat(1 / float(2 * target));
        begin = __builtin_convertvector((__builtin_convertvector(low > 0 ? low : vi{}, vf) + 0.5f) * share, vi);
      } else {
        const vd low = double(origin) + __builtin_convertvector(places(i), vd) * double(2 * source);
        begin = __builtin_convertvector((low > 0 ? low : vd{}) * (1 / double(2 * target)) + 0x1p-27, vi);
      }
      put(first + i, begin < int32_t(source - count) ? begin : vi{} + int32_t(source - count));
    }
    for (int64_t i = 0; i < target; i += W) {
      const int64_t all = first[i] + first[i + W - 1] - 2 * base(i) + count;
      span = span < all ? all : span;
    }
    lanewise = !dots || span <= 4 * W;
    wide = lanewise ? count : round_up(count, W);
    if (Filter::fixed) bits = Filter::bits(tabulate());
    tabulate();
  }

  FASTSSL_MEMBER int64_t base(int64_t i) const { return lower(first[i], first[i + W - 1]); }

 private:
  // The pixels that a vector is of.
  FASTSSL_MEMBER vi places(int64_t i) const {
    vi at = lanes() + int32_t(i);
    at = at < int32_t(target) ? at : vi{} + int32_t(target - 1);
    return mirrored ? int32_t(target - 1) - at : at;
  }

  // The largest is returned.
  double tabulate() const {
    vd largest{};
    for (int64_t i = 0; i < padded(target); i += W) {
      const vi at = places(i);
      // Of the first from the centre, in parts; the products may wrap, this does not.
      const vi away = vi((2 * bits_v(load_number(first + i)) + 1) * uint32_t(target) -
                         (2 * bits_v(at) + 1) * uint32_t(source));
      const auto height = [&](int64_t j) {
        vi part = away + int32_t(2 * target * j);
        part = int32_t(half_width(source, target)) - (part < 0 ? -part : part);
        return part > 0 ? part : vi{};
      };
      vd total{};
      vf share{};
      if (!Filter::fixed && count == 2) {  // whole numbers hold the sum
        share = 1 / __builtin_convertvector(height(0) + height(1), vf);
      } else {
        for (int64_t j = 0; j < count; ++j) total += __builtin_convertvector(height(j), vd);
        share = 1 / __builtin_convertvector(total, vf);
      }
      for (int64_t j = 0; j < wide; ++j) {
        const vi part = j < count ? height(j) : vi{};
        vec made;
        if constexpr (Filter::fixed) {
          const vd weight = __builtin_convertvector(part, vd) / total;
          largest = weight > largest ? weight : largest;
          made = __builtin_convertvector(Filter::scaled(weight, bits), vi);  // of 0, it is 0
        } else {
          made = __builtin_convertvector(part, vf) * share;
        }
        if (lanewise)
          put(table + i * wide + j * W, made);
        else
          for (int l = 0; l < W; ++l) table[(i + l) * wide + j] = made[l];
      }
    }
    double most = 0;
    for (int l = 0; l < W && Filter::fixed; ++l) most = most < largest[l] ? largest[l] : most;
    return most;
  }
};

struct Crop {
  const uint8_t *data, *end;  // its first pixel; of the memory that may be read
  int64_t height, width, row, pixel, channel;  // strides in bytes
  int64_t planes;

  // Into the cache: of a crop, rows are too short for the processor to foresee them.
  FASTSSL_MEMBER void fetch(int64_t y) const {
    if (y >= height) return;
    const uint8_t* from = data + y * row;
    for (int64_t k = 0; k < planes; ++k, from += channel) {
      for (int64_t x = 0; x < width * pixel; x += 64) __builtin_prefetch(from + x);
      __builtin_prefetch(from + width * pixel - 1);
    }
  }
};

// The lanes K, K + 3, … of three vectors side by side.
template <int K, int... I>
FASTSSL_INLINE vf every_third(vf a, vf b, vf c, Ints<I...>) {
  const vf two = FASTSSL_SHUFFLE(a, b, (3 * I + K < 2 * W ? 3 * I + K : 0)...);
  return FASTSSL_SHUFFLE(two, c, (3 * I + K < 2 * W ? I : 3 * I + K - W)...);
}

typedef uint16_t half_v __attribute__((vector_size(2 * W)));
typedef uint8_t bytes_v __attribute__((vector_size(W)));
typedef bytes_v bytes_v_unaligned __attribute__((aligned(1), may_alias));

// Each step apart, lest the compiler takes bytes to floats one by one.
template <class vec>
FASTSSL_INLINE vec widened(const uint8_t* bytes) {
  const bytes_v narrow = apart(*reinterpret_cast<const bytes_v_unaligned*>(bytes));
  return __builtin_convertvector(apart(__builtin_convertvector(narrow, vi)), vec);
}

// Of the lanes of two vectors side by side, any, by their numbers modulo 2W.
FASTSSL_INLINE vf picked(vf a, vf b, vi which) {
#if defined(__clang__)
  vf x;
  for (int l = 0; l < W; ++l) x[l] = (which[l] & W ? b : a)[which[l] & (W - 1)];
  return x;
#else
  return __builtin_shuffle(a, b, which);
#endif
}

constexpr int64_t kNarrowed = 4;  // rows of the crop that are narrowed at a time

template <class Filter, int C>
class Resizer {
  using vec = typename Filter::vec;
  using number = typename Filter::number;

 public:
  static int64_t floats(int64_t sh, int64_t sw, int64_t h, int64_t w) {
    return Weights<Filter>::floats(sw, w) + Weights<Filter>::floats(sh, h) +
           C * (kNarrowed * reach(sw) + ring_rows(sh, sw, most_weights(sh, h)) * padded(w)) +
           round_up(2 * most_weights(sh, h), W);
  }

  Resizer(const Crop& crop, int64_t h, int64_t w, bool flip, float* memory)
      : crop(crop),
        pitch(padded(w)),
        across(crop.width, w, flip, true, memory),
        down(crop.height, h, false, false, memory += Weights<Filter>::floats(crop.width, w)) {
    memory += Weights<Filter>::floats(crop.height, h);
    wide = reinterpret_cast<number*>(memory);
    memory += C * kNarrowed * reach(crop.width);
    ring = reinterpret_cast<number*>(memory);
    kept = ring_rows(crop.height, crop.width, down.count);
    memory += kept * C * pitch;
    rows = reinterpret_cast<const number**>(memory);
    if (small(crop.height, crop.width) && across.count == 2 && (crop.pixel == 1 || C == 1)) narrow_all();
    for (int64_t l = 0; l < C * kNarrowed && !across.lanewise; ++l)  // weighs nothing, so must be a number
      for (int64_t x = crop.width; x < reach(crop.width); ++x) wide[l * reach(crop.width) + x] = 0;
  }

  // Rows of the view are made in their order.
  FASTSSL_MEMBER void go_to(int64_t y) {
    const int64_t begin = down.first[y];
    if (next < begin + down.count) narrow_until(begin + down.count);
    for (int64_t j = 0; j < down.count; ++j) rows[j] = ring + ((begin + j) & (kept - 1)) * C * pitch;
    weights = down.table + y / W * W * down.count + y % W;
  }

  // Pixels of that row from x on, 0 to 255.
  FASTSSL_MEMBER void get(int64_t x, Pixels<vf> (&pixels)[kAbreast]) const {
    if (down.count == 2)
      get<2>(x, pixels);
    else
      get<0>(x, pixels);
  }

 private:
  // Of a row, and what is read beyond it and picked by nobody.
  static int64_t reach(int64_t width) { return round_up(width, W) + 4 * W; }
  // A crop that is narrowed at once, a row in a pair of vectors.
  static bool small(int64_t sh, int64_t sw) { return sw <= 2 * W && sh <= 4 * W; }
  static int64_t ring_rows(int64_t sh, int64_t sw, int64_t count) {  // a power of two
    const int64_t needed = small(sh, sw) && sh > count + kNarrowed - 1 ? sh : count + kNarrowed - 1;
    int64_t rows = kNarrowed;
    while (rows < needed) rows *= 2;
    return rows;
  }

  // From as many rows as N, or any where that is 0.
  template <int N>
  FASTSSL_MEMBER void get(int64_t x, Pixels<vf> (&pixels)[kAbreast]) const {
    vec sums[kAbreast][C]{};
    for (int64_t j = 0; j < (N ? N : down.count); ++j) {
      const vec weight = weights[j * W] - vec{};
      const number* at = rows[j] + x;
      for (int v = 0; v < kAbreast; ++v)
        for (int k = 0; k < C; ++k) sums[v][k] += weight * load_number(at + k * pitch + v * W);
    }
    const auto colour = [&](vec sum) {
      return __builtin_convertvector(Filter::finish(sum, down.bits), vf);
    };
    for (int v = 0; v < kAbreast; ++v)
      pixels[v] = {colour(sums[v][0]), colour(sums[v][C / 2]), colour(sums[v][C - 1])};
  }

  void widen_row(int64_t row, number* to) const {
    using Lanes = typename Count<W>::type;
    const uint8_t* from = crop.data + row * crop.row;
    const int64_t width = crop.width, line = reach(width), whole = width / W * W;
    if (crop.pixel == 1 || C == 1) {
      for (int k = 0; k < C; ++k) {
        const uint8_t* bytes = from + k * crop.channel;
        for (int64_t x = 0; x < whole; x += W) put(to + k * line + x, widened<vec>(bytes + x));
        if (whole > 0) put(to + k * line + width - W, widened<vec>(bytes + width - W));
        for (int64_t x = 0; x < width && whole == 0; ++x) to[k * line + x] = number(bytes[x]);
      }
      return;
    }
    const auto three = [&](int64_t x) {
      const vf a = (vf)widened<vec>(from + 3 * x), b = (vf)widened<vec>(from + 3 * x + W),
               c = (vf)widened<vec>(from + 3 * x + 2 * W);
      put(to + x, (vec)every_third<0>(a, b, c, Lanes{}));
      put(to + line + x, (vec)every_third<1>(a, b, c, Lanes{}));
      put(to + 2 * line + x, (vec)every_third<2>(a, b, c, Lanes{}));
    };
    for (int64_t x = 0; x < whole; x += W) three(x);
    if (whole > 0) three(width - W);
    for (int64_t x = 0; x < width && whole == 0; ++x)
      for (int k = 0; k < C; ++k) to[k * line + x] = number(from[x * C + k]);
  }

  // A vector of pixels of each line, from as many weights as N, or any where that is 0, and V pairs of
  // vectors of the crop.
  template <int V, int N>
  FASTSSL_MEMBER void narrow_vector(int64_t i, int64_t lines, number* to) const {
    const int64_t count = N ? N : across.count, line = reach(crop.width), base = across.base(i);
    const vi index = load_number(across.first + i) - int32_t(base);
    const number* weight = across.table + i * across.count;
    for (int64_t l = 0; l < lines; ++l) {
      const float* from = reinterpret_cast<const float*>(wide + l * line + base);
      vf part[2 * V];
      for (int v = 0; v < 2 * V; ++v) part[v] = load(from + v * W);
      vec sum{};
      for (int64_t j = 0; j < count; ++j) {
        const vi at = index + int32_t(j);
        vf x = picked(part[0], part[1], at);
        if constexpr (V == 2) x = at < 2 * W ? x : picked(part[2], part[3], at);
        sum += load_number(weight + j * W) * (vec)x;
      }
      put(to + l * pitch + i, Filter::finish(sum, across.bits));
    }
  }

  // The same where a pixel takes so many weights that they are worth vectors of their own.
  void narrow_dots(int64_t i, int64_t lines, number* to) const {
    for (int64_t l = 0; l < lines; ++l) {
      vf sums[W];
      for (int p = 0; p < W; ++p) {
        const number* weight = across.table + (i + p) * across.wide;
        const number* from = wide + l * reach(crop.width) + across.first[i + p];
        vec sum{};
        for (int64_t j = 0; j < across.count; j += W) sum += load_number(weight + j) * load_number(from + j);
        sums[p] = (vf)sum;
      }
      transpose(sums);
      vec sum = (vec)sums[0];
      for (int p = 1; p < W; ++p) sum += (vec)sums[p];
      put(to + l * pitch + i, Filter::finish(sum, across.bits));
    }
  }

  template <int V, int N>
  void narrow_lines(int64_t lines, number* to) const {
    for (int64_t i = 0; i < pitch; i += W) narrow_vector<V, N>(i, lines, to);
  }

  // Of planes, from two weights.
  void narrow_all() {
    for (int64_t i = 0; i < pitch; i += kAbreast * W) {
      vi at[kAbreast];
      vec weight[kAbreast][2];
      for (int v = 0; v < kAbreast; ++v) {
        at[v] = load_number(across.first + i + v * W);
        for (int j = 0; j < 2; ++j) weight[v][j] = load_number(across.table + (i + v * W) * 2 + j * W);
      }
      const uint8_t* row = crop.data;
      number* to = ring + i;
      for (int64_t y = 0; y < crop.height; ++y, row += crop.row)
        for (int k = 0; k < C; ++k, to += pitch) {
          const uint8_t* from = row + k * crop.channel;
          uint8_t last[2 * W];
          if (from + 2 * W > crop.end) {
            for (int64_t x = 0; x < 2 * W; ++x) last[x] = x < crop.width ? from[x] : 0;
            from = last;
          }
          const vf a = (vf)widened<vec>(from), b = (vf)widened<vec>(from + W);
          for (int v = 0; v < kAbreast; ++v) {
            const vec first = apart(weight[v][0] * (vec)picked(a, b, at[v]));  // rounded, as where it is added to 0
            put(to + v * W, Filter::finish(first + weight[v][1] * (vec)picked(a, b, at[v] + 1), across.bits));
          }
        }
    }
    next = crop.height;
  }

  __attribute__((noinline)) void narrow_until(int64_t end) {
    for (; next < end; next += kNarrowed) narrow_rows(lower(kNarrowed, crop.height - next));
  }

  void narrow_rows(int64_t count) const {
    for (int64_t r = 0; r < count; ++r) {
      crop.fetch(next + r + kNarrowed);
      widen_row(next + r, wide + r * C * reach(crop.width));
    }
    number* to = ring + (next & (kept - 1)) * C * pitch;
    const int64_t lines = count * C;
    if (!across.lanewise)
      for (int64_t i = 0; i < pitch; i += W) narrow_dots(i, lines, to);
    else if (across.span > 2 * W && across.count == 4)
      narrow_lines<2, 4>(lines, to);
    else if (across.span > 2 * W && across.count == 5)
      narrow_lines<2, 5>(lines, to);
    else if (across.span > 2 * W)
      narrow_lines<2, 0>(lines, to);
    else if (across.count == 2)
      narrow_lines<1, 2>(lines, to);
    else if (across.count == 3)
      narrow_lines<1, 3>(lines, to);
    else if (across.count == 4)
      narrow_lines<1, 4>(lines, to);
    else
      narrow_lines<1, 0>(lines, to);
  }

  const Crop& crop;
  const int64_t pitch;
  const Weights<Filter> across, down;
  number *wide, *ring;   // [kNarrowed, C, reach], [kept, C, pitch]
  int64_t kept, next = 0;  // rows of the crop in the ring; the first that has not been there
  const number** rows;   // [down.count], of those that a row of the view is a sum of
  const number* weights = nullptr;
};
