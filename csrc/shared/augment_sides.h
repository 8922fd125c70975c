// Weights of a resize as a block of threads has them. Included as augment_block.h is, before it.

// One side of the crop and the view.
struct Side {
  int64_t source;
  int target, count, bits;
  int32_t* first;  // [target]
  float* table;    // numbers [count, target]; where there is no room for them, their sums in double
  bool whole;
};

FASTSSL_INLINE float weighed(float weight, float x, float sum) { return fused(weight, x, sum); }
FASTSSL_INLINE int32_t weighed(int32_t weight, int32_t x, int32_t sum) { return weight * x + sum; }

template <class Filter>
FASTSSL_INLINE typename Filter::number weight_at(const Side& side, const Triangle& t, int i, int k) {
  using number = typename Filter::number;
  if (side.whole) return reinterpret_cast<const number*>(side.table)[k * side.target + i];
  const int64_t j = side.first[i] + k;
  if (j < t.begin || j >= t.end) return 0;
  const double height = height_at(side.source, side.target, t, j);
  return number(Filter::scaled(height / reinterpret_cast<const double*>(side.table)[i], side.bits));
}

// What the pixels of a side need: how many weights, and of how many bits.
template <class Filter, class Block>
FASTSSL_INLINE void measure_pixel(Block& block, int64_t source, int target, int i, int32_t* count,
                                  int32_t* lost) {
  const Triangle t = triangle_of(source, target, i);
  block.raise(count, int32_t(t.end - t.begin));
  if (!Filter::fixed) return;
  double sum = 0, largest = 0;
  for (int64_t j = t.begin; j < t.end; ++j) sum += height_at(source, target, t, j);
  for (int64_t j = t.begin; j < t.end; ++j) {
    const double weight = height_at(source, target, t, j) / sum;
    largest = weight > largest ? weight : largest;
  }
  block.raise(lost, 22 - Filter::bits(largest));
}

template <class Filter>
FASTSSL_INLINE void tabulate_pixel(const Side& side, int i) {
  using number = typename Filter::number;
  const Triangle t = triangle_of(side.source, side.target, i);
  const int64_t last = side.source - side.count;
  side.first[i] = int32_t(t.begin < last ? t.begin : last);
  double sum = 0;
  for (int64_t j = t.begin; j < t.end; ++j) sum += height_at(side.source, side.target, t, j);
  if (!side.whole) {
    reinterpret_cast<double*>(side.table)[i] = sum;
    return;
  }
  for (int k = 0; k < side.count; ++k) {
    const int64_t j = side.first[i] + k;
    const bool within = j >= t.begin && j < t.end;
    const double share = height_at(side.source, side.target, t, j) / sum;
    reinterpret_cast<number*>(side.table)[k * side.target + i] =
        within ? number(Filter::scaled(share, side.bits)) : number(0);
  }
}
