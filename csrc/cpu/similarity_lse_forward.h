// Forward: row sums, and column sums where they are wanted or the matrix is symmetric, of powers of
// two, a tile at a time in registers. Nothing of the matrix leaves the core's own cache.

// Which columns of block `column` the rows of block `row` may not see.
struct Exclusions {
  int64_t row0, column0, columns, first, second;

  Exclusions(const LseProblem<real>& p, int64_t row0, int64_t column0, int64_t count)
      : row0(row0), column0(column0), columns(p.y.count), first(p.excluded[0]),
        second(p.excluded[1]), count_(count) {}

  // The excluded positions of row r within the tile; -1 where there is none.
  void of(int64_t r, int32_t (&at)[2]) const {
    at[0] = position(first, r), at[1] = position(second, r);
  }

  // Whether any of the first `rows` rows has an excluded entry in this tile.
  bool any(int64_t rows) const {
    if (first < 0 && second < 0) return false;
    for (int64_t r = 0; r < rows; ++r)
      if (position(first, r) >= 0 || position(second, r) >= 0) return true;
    return false;
  }

 private:
  int64_t count_;
  int32_t position(int64_t offset, int64_t r) const {
    if (offset < 0) return -1;
    const int64_t c = (row0 + r + offset) % columns - column0;
    return c >= 0 && c < count_ ? int32_t(c) : -1;
  }
};

// x_i · y_pair(i), with all digits that the inputs have: losses are differences from it.
FASTSSL_INLINE double pair_of(const LseProblem<real>& p, int64_t i) {
  const int64_t j = (i + p.pair) % p.y.count;
  const real* y = p.pairs ? p.pairs + i * p.d : p.y.source + j * p.d;
  const double product = exact_dot(p.x.source + i * p.d, y, p.d);
  if (!p.normalized) return product - product == 0 ? product : __builtin_nan("");
  return product * p.x.inv_norm[i] *
         (p.y.inv_norm && !p.pairs ? p.y.inv_norm[j] : inverse_of(norm_of(y, p.d)));
}

// What an entry of the matrix is to its sums, as a function of x·y and where that is bounded; what
// the gradients take of it; and what becomes of a sum in the end.
struct Power {
  vf sign;
  vf value(vf product) const { return exp2(product * sign); }
  vf slope(vf product) const { return value(product); }
  static double result(double sum) { return __builtin_log2(sum); }
};

// s [rows, columns] = x·y of a tile
static void products_to(const LseProblem<real>& p, const Tile& t, int64_t block, const real* panels,
                        int64_t panel_stride, real* s, int64_t ld) {
  const int64_t rows = lower(block, p.x.count - t.row * block);
  const int64_t columns = lower(block, p.y.count - t.column * block);
  for (int64_t c = 0; c < columns; c += NR)
    for (int64_t r = 0; r < rows; r += MR)
      multiply(p.x.data + (t.row * block + r) * p.ld, p.ld, panels + c / NR * panel_stride, p.d,
               p.cut, s + r * ld + c, ld);
}

template <class Entry>
struct Forward {
  const Runtime& runtime;
  const LseProblem<real>& p;
  const Entry entry;
  real* panels;  // [K / NR][d][NR]
  // Running sums until finish(), and the whole numbers they are relative to (0 where bounded).
  double *lse2, *top;                // [M]
  double *column_lse2, *column_top;  // [K]; the rows' own where symmetric
  Schedule schedule;
  double* cosine;  // [M] of the pairs
  int64_t block, next_panel, panel_count, panel_stride, next_row;

  static void run_pack(void* self) { static_cast<Forward*>(self)->pack(); }
  static void run_tiles(void* self) { static_cast<Forward*>(self)->tiles(); }

  void pack() {
    for (;;) {
      const int64_t i = __atomic_fetch_add(&next_panel, 1, __ATOMIC_RELAXED);
      if (i >= panel_count) return;
      pack_panel(p.y.data + i * NR * p.ld, p.ld, p.d, panels + i * panel_stride);
    }
  }

  void tiles() {
    auto* scratch = static_cast<real*>(runtime.scratch(scratch_bytes()));
    Tile tile;
    while (schedule.take(tile)) {
      if (!tile.idle) {
        const bool diagonal = p.symmetric && tile.row == tile.column;
        // Of a tile on the diagonal half is enough, if the diagonal itself is left out.
        const bool half = diagonal && p.excluded[0] == 0;
        const bool both = p.columns || (p.symmetric && (!diagonal || half));
        if (!p.bounded)
          any_range(tile, both && !half, scratch);
        else if (half || masked(tile))
          both ? bounded<true, true>(tile, half, scratch) : bounded<true, false>(tile, half, scratch);
        else
          both ? bounded<false, true>(tile, half, scratch)
               : bounded<false, false>(tile, half, scratch);
      }
      schedule.finish(tile);
    }
  }

  int64_t rows_of(const Tile& t) const { return lower(block, p.x.count - t.row * block); }
  int64_t columns_of(const Tile& t) const { return lower(block, p.y.count - t.column * block); }
  Exclusions exclusions(const Tile& t) const {
    return Exclusions(p, t.row * block, t.column * block, columns_of(t));
  }
  bool masked(const Tile& t) const {
    return rows_of(t) < block || columns_of(t) < block || exclusions(t).any(rows_of(t));
  }
  int64_t scratch_bytes() const {
    return int64_t(sizeof(real)) * (block * (block + 16) + block * (W + 2) + 64);
  }

  // Exponents are bounded: plain sums of powers, each computed once for its row and its column.
  // half: only entries above the diagonal.
  template <bool MASKED, bool BOTH>
  void bounded(const Tile& t, bool half, real* scratch) {
    const int64_t rows = rows_of(t), columns = columns_of(t);
    const real* a = p.x.data + t.row * block * p.ld;
    const Entry e_of = entry;  // in registers
    real* row_sums = scratch;                  // [block][W]
    real* column_sums = scratch + block * W;   // [block]
    for (int64_t r = 0; r < block; ++r) store(row_sums + r * W, vf{});
    alignas(64) real products[MR * NR];
    const Exclusions excluded = exclusions(t);
    for (int64_t c = 0; c < columns; c += NR) {
      const real* panel = panels + (t.column * block + c) / NR * panel_stride;
      vf column_sum[NV] = {};
      for (int64_t r = 0; r < (half ? lower(rows, c + NR) : rows); r += MR) {
        multiply(a + r * p.ld, p.ld, panel, p.d, p.cut, products, NR);
        for (int i = 0; i < MR; ++i) {
          vf e[NV];
          for (int v = 0; v < NV; ++v) e[v] = e_of.value(load(products + i * NR + v * W));
          if constexpr (MASKED) {
            int32_t at[2];
            excluded.of(r + i, at);
            const lane_t end = r + i < rows ? lane_t(columns - c) : 0;
            for (int v = 0; v < NV; ++v) {
              const vi lane = lanes() + v * W;
              vi allowed =
                  (lane < end) & (lane != lane_t(at[0] - c)) & (lane != lane_t(at[1] - c));
              if (half) allowed &= lane > lane_t(r + i - c);
              e[v] = allowed ? e[v] : vf{};
            }
          }
          vf row_sum = load(row_sums + (r + i) * W);
          for (int v = 0; v < NV; ++v) {
            row_sum += e[v];
            if constexpr (BOTH) column_sum[v] += e[v];
          }
          store(row_sums + (r + i) * W, row_sum);
        }
      }
      if constexpr (BOTH)
        for (int v = 0; v < NV; ++v) store(column_sums + c + v * W, column_sum[v]);
    }
    double* row_total = lse2 + t.row * block;
    for (int64_t r = 0; r < rows; ++r) row_total[r] += sum(load(row_sums + r * W));
    if constexpr (BOTH) {
      double* column_total = column_lse2 + t.column * block;
      for (int64_t c = 0; c < columns; ++c) column_total[c] += column_sums[c];
    }
  }

  // Any range: the tile's products to scratch, then each row (and column) about its own maximum.
  void any_range(const Tile& t, bool both, real* s) {
    const int64_t rows = rows_of(t), columns = columns_of(t), ld = block + 16;
    products_to(p, t, block, panels + t.column * block / NR * panel_stride, panel_stride, s, ld);
    const vf sign = splat(p.sign), lowest = splat(-__builtin_inff());
    const Exclusions excluded = exclusions(t);
    for (int64_t r = 0; r < rows; ++r) {
      int32_t at[2];
      excluded.of(r, at);
      for (int64_t c = 0; c < columns; c += W) {
        const vi lane = lanes() + lane_t(c);
        const vi allowed =
            (lane < lane_t(columns)) & (lane != lane_t(at[0])) & (lane != lane_t(at[1]));
        store(s + r * ld + c, allowed ? load(s + r * ld + c) * sign : lowest);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      vf high = lowest;
      for (int64_t c = 0; c < columns; c += W) high = vmax(high, load(s + r * ld + c));
      const int64_t i = t.row * block + r;
      const real m = raise(lse2 + i, top + i, highest(high));
      if (m == -__builtin_inff()) continue;
      vf total{};
      for (int64_t c = 0; c < columns; c += W) total += exp2_clamped(load(s + r * ld + c) - m);
      lse2[i] += sum(total);
    }
    if (!both) return;
    for (int64_t c = 0; c < columns; c += W) {
      vf high = lowest, m, total{};
      for (int64_t r = 0; r < rows; ++r) high = vmax(high, load(s + r * ld + c));
      const int64_t j = t.column * block + c, n = lower(W, columns - c);
      for (int l = 0; l < W; ++l) m[l] = l < n ? raise(column_lse2 + j + l, column_top + j + l, high[l]) : 0;
      m = m == lowest ? vf{} : m;
      for (int64_t r = 0; r < rows; ++r) total += exp2_clamped(load(s + r * ld + c) - m);
      for (int l = 0; l < n; ++l)
        if (high[l] != -__builtin_inff()) column_lse2[j + l] += total[l];
    }
  }

  // Raises a running maximum, a whole number so that rescaling its sum is exact.
  static real raise(double* sum, double* top, real high) {
    const real m = real(__builtin_ceil(high));
    if (m <= *top) return real(*top);
    const double shift = *top - m;  // −inf at first, when there is nothing to rescale
    *sum = shift > -2000 ? __builtin_ldexp(*sum, int(shift)) : 0;
    *top = m;
    return m;
  }

  static void run_finish(void* self) { static_cast<Forward*>(self)->finish(); }

  void finish() {
    const int64_t all = p.x.count + (p.columns ? p.y.count : 0);
    for (;;) {
      const int64_t begin = __atomic_fetch_add(&next_row, 256, __ATOMIC_RELAXED);
      if (begin >= all) return;
      for (int64_t i = begin; i < lower(begin + 256, all); ++i) {
        const int64_t j = i - p.x.count;
        if (j >= 0) {
          column_lse2[j] = Entry::result(column_lse2[j]) + (p.bounded ? 0 : column_top[j]);
        } else {
          lse2[i] = Entry::result(lse2[i]) + (p.bounded ? 0 : top[i]);
          cosine[i] = p.pair < 0 ? 0 : pair_of(p, i);
        }
      }
    }
  }
};

template <class Entry>
static void forward_of(const Entry& entry, const Runtime& runtime, const LseProblem<real>& p,
                       real* panels, double* lse2, double* column_lse2, double* cosine) {
  const int64_t block = block_of(p);
  const int64_t rows = (p.x.count + block - 1) / block, columns = (p.y.count + block - 1) / block;
  const int64_t panel_count = columns * block / NR;
  auto* progress = new int[Schedule::progress_size(rows, columns, p.symmetric)];
  auto* top = new double[p.bounded ? 1 : p.x.count + p.y.count];
  for (int64_t i = 0; i < p.x.count; ++i) lse2[i] = 0;
  if (p.columns)
    for (int64_t j = 0; j < p.y.count; ++j) column_lse2[j] = 0;
  if (!p.bounded)
    for (int64_t i = 0; i < p.x.count + p.y.count; ++i) top[i] = -__builtin_inf();
  Forward<Entry> f{runtime, p, entry, panels, lse2, top,
                   p.columns ? column_lse2 : lse2, p.columns ? top + p.x.count : top,
                   Schedule(rows, columns, p.symmetric, progress),
                   cosine, block, 0, panel_count, round_up(p.d, W) * NR, 0};
  runtime.parallel(workers(runtime, p), f.run_pack, &f);
  runtime.parallel(workers(runtime, p), f.run_tiles, &f);
  runtime.parallel(workers(runtime, p), f.run_finish, &f);
  delete[] progress;
  delete[] top;
}

static void forward(const Runtime& runtime, const LseProblem<real>& p, real* panels, double* lse2,
                    double* column_lse2, double* cosine) {
  forward_of(Power{splat(p.sign)}, runtime, p, panels, lse2, column_lse2, cosine);
}
