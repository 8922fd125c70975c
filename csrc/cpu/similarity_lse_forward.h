// Forward: row sums (and column sums, where the matrix is symmetric) of 2^(scale2 · x·y), a tile
// at a time in registers. Nothing of the matrix leaves the core's own cache.

// Copies, checks and normalises rows; see LseKernels::prepare.
struct Prepare {
  const float* src;
  int64_t rows, padded, d;
  bool normalize;
  float* dst;
  int64_t ld;
  float* inv_norm;
  double largest;
  int64_t next;

  static constexpr int64_t kChunk = 64;
  static constexpr double kNormEps = 1e-12;

  static void run(void* self) { static_cast<Prepare*>(self)->work(); }

  void work() {
    double largest_here = 0;
    bool finite = true;
    for (;;) {
      const int64_t begin = __atomic_fetch_add(&next, kChunk, __ATOMIC_RELAXED);
      if (begin >= padded) break;
      for (int64_t i = begin; i < lower(begin + kChunk, padded); ++i) {
        const double norm = row(i);
        finite = finite && norm - norm == 0;
        largest_here = norm > largest_here ? norm : largest_here;
      }
    }
    merge(finite ? largest_here : __builtin_nan(""));
  }

  void merge(double mine) {  // NaN wins, then the larger
    double seen;
    __atomic_load(&largest, &seen, __ATOMIC_RELAXED);
    do {
      if (!(mine == mine ? mine > seen : seen == seen)) return;
    } while (!__atomic_compare_exchange(&largest, &seen, &mine, true, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED));
  }

  double row(int64_t i) {
    float* out = dst + i * ld;
    for (int64_t k = 0; k < ld; k += W) store(out + k, vf{});
    if (i >= rows) return 0;
    const float* in = src + i * d;
    const int64_t whole = d / W * W;
    vf squares{};
    for (int64_t k = 0; k < whole; k += W) {
      const vf v = load(in + k);
      squares += v * v;
    }
    double total = sum(squares);
    for (int64_t k = whole; k < d; ++k) total += double(in[k]) * in[k];
    if (!(total > 1e-20 && total < 1e37)) {  // squares that float32 may have lost
      total = 0;
      for (int64_t k = 0; k < d; ++k) total += double(in[k]) * in[k];
    }
    const double norm = __builtin_sqrt(total);
    const double factor = !normalize ? 1 : norm < kNormEps ? 0 : 1 / norm;
    inv_norm[i] = float(factor);
    if (normalize && !(norm > 1e-30 && norm < 1e30)) {  // the factor leaves float32
      for (int64_t k = 0; k < d; ++k) out[k] = float(in[k] * factor);
      return norm;
    }
    const vf f = splat(float(factor));
    for (int64_t k = 0; k < whole; k += W) store(out + k, load(in + k) * f);
    for (int64_t k = whole; k < d; ++k) out[k] = in[k] * float(factor);
    return norm;
  }
};

static double prepare(const Runtime& runtime, const float* src, int64_t rows, int64_t padded,
                      int64_t d, bool normalize, float* dst, int64_t ld, float* inv_norm) {
  Prepare p{src, rows, padded, d, normalize, dst, ld, inv_norm, 0, 0};
  runtime.parallel(padded > Prepare::kChunk * 4 ? runtime.threads : 1, Prepare::run, &p);
  return p.largest;
}

// Which columns of block `column` the rows of block `row` may not see.
struct Exclusions {
  int64_t row0, column0, columns, first, second;

  Exclusions(const LseProblem& p, int64_t row0, int64_t column0, int64_t count)
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

struct Forward {
  const Runtime& runtime;
  const LseProblem& p;
  float* panels;   // [K / NR][d][NR]
  double* lse2;    // [M]: running sums until finish()
  float* top;      // [M] running maxima where not bounded
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
    auto* scratch = static_cast<float*>(runtime.scratch(scratch_bytes()));
    Tile tile;
    while (schedule.take(tile)) {
      if (!tile.idle) {
        const bool diagonal = p.symmetric && tile.row == tile.column;
        // Of a tile on the diagonal half is enough, if the diagonal itself is left out.
        const bool half = diagonal && p.excluded[0] == 0;
        const bool both = p.symmetric && (!diagonal || half);
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
  int64_t scratch_bytes() const { return 4 * (block * (block + 16) + block * (W + 2) + 64); }

  // |scale2 · x·y| is bounded: plain sums of powers, each computed once for its row and its column.
  // half: only entries above the diagonal.
  template <bool MASKED, bool BOTH>
  void bounded(const Tile& t, bool half, float* scratch) {
    const int64_t rows = rows_of(t), columns = columns_of(t);
    const float* a = p.x.data + t.row * block * p.ld;
    const vf scale = splat(p.scale2);
    float* row_sums = scratch;                  // [block][W]
    float* column_sums = scratch + block * W;   // [block]
    for (int64_t r = 0; r < block; ++r) store(row_sums + r * W, vf{});
    alignas(64) float products[MR * NR];
    const Exclusions excluded = exclusions(t);
    for (int64_t c = 0; c < columns; c += NR) {
      const float* panel = panels + (t.column * block + c) / NR * panel_stride;
      vf column_sum[NV] = {};
      for (int64_t r = 0; r < (half ? lower(rows, c + NR) : rows); r += MR) {
        multiply(a + r * p.ld, p.ld, panel, p.d, p.cut, products, NR);
        for (int i = 0; i < MR; ++i) {
          vf e[NV];
          for (int v = 0; v < NV; ++v) e[v] = exp2(load(products + i * NR + v * W) * scale);
          if constexpr (MASKED) {
            int32_t at[2];
            excluded.of(r + i, at);
            const int32_t end = r + i < rows ? int32_t(columns - c) : 0;
            for (int v = 0; v < NV; ++v) {
              const vi lane = lanes() + v * W;
              vi allowed =
                  (lane < end) & (lane != at[0] - int32_t(c)) & (lane != at[1] - int32_t(c));
              if (half) allowed &= lane > int32_t(r + i - c);
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
      double* column_total = lse2 + t.column * block;
      for (int64_t c = 0; c < columns; ++c) column_total[c] += column_sums[c];
    }
  }

  // Any range: the tile's products to scratch, then each row (and column) about its own maximum.
  void any_range(const Tile& t, bool both, float* s) {
    const int64_t rows = rows_of(t), columns = columns_of(t), ld = block + 16;
    products_to(p, t, block, panels + t.column * block / NR * panel_stride, panel_stride, s, ld);
    const vf scale = splat(p.scale2), lowest = splat(-__builtin_inff());
    const Exclusions excluded = exclusions(t);
    for (int64_t r = 0; r < rows; ++r) {
      int32_t at[2];
      excluded.of(r, at);
      for (int64_t c = 0; c < columns; c += W) {
        const vi lane = lanes() + int32_t(c);
        const vi allowed = (lane < int32_t(columns)) & (lane != at[0]) & (lane != at[1]);
        store(s + r * ld + c, allowed ? load(s + r * ld + c) * scale : lowest);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      vf high = lowest;
      for (int64_t c = 0; c < columns; c += W) high = vmax(high, load(s + r * ld + c));
      const int64_t i = t.row * block + r;
      const float m = raise(i, highest(high));
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
      for (int l = 0; l < W; ++l) m[l] = l < n ? raise(j + l, high[l]) : 0;
      m = m == lowest ? vf{} : m;
      for (int64_t r = 0; r < rows; ++r) total += exp2_clamped(load(s + r * ld + c) - m);
      for (int l = 0; l < n; ++l)
        if (high[l] != -__builtin_inff()) lse2[j + l] += total[l];
    }
  }

  // Raises the running maximum of row i, a whole number so that rescaling is exact, and rescales.
  float raise(int64_t i, float high) {
    const float m = __builtin_ceilf(high);
    if (m <= top[i]) return top[i];
    const float shift = top[i] - m;  // −inf at first, when there is nothing to rescale
    lse2[i] = shift > -2000 ? __builtin_ldexp(lse2[i], int(shift)) : 0;
    return top[i] = m;
  }

  static void run_finish(void* self) { static_cast<Forward*>(self)->finish(); }

  void finish() {
    for (;;) {
      const int64_t begin = __atomic_fetch_add(&next_row, 256, __ATOMIC_RELAXED);
      if (begin >= p.x.count) return;
      for (int64_t i = begin; i < lower(begin + 256, p.x.count); ++i) {
        lse2[i] = __builtin_log2(lse2[i]) + (p.bounded ? 0 : top[i]);
        cosine[i] = p.pair < 0 ? 0 : pair(i);
      }
    }
  }

  // x_i · y_pair(i)
  double pair(int64_t i) const {
    const float* a = p.x.data + i * p.ld;
    const float* b = p.y.data + (i + p.pair) % p.y.count * p.ld;
    vf dot{};
    for (int64_t k = 0; k < p.d; k += W) dot += load(a + k) * load(b + k);
    return sum(dot);
  }

  // s [rows, columns] = x·y of a tile
  static void products_to(const LseProblem& p, const Tile& t, int64_t block, const float* panels,
                          int64_t panel_stride, float* s, int64_t ld) {
    const int64_t rows = lower(block, p.x.count - t.row * block);
    const int64_t columns = lower(block, p.y.count - t.column * block);
    for (int64_t c = 0; c < columns; c += NR)
      for (int64_t r = 0; r < rows; r += MR)
        multiply(p.x.data + (t.row * block + r) * p.ld, p.ld, panels + c / NR * panel_stride, p.d,
                 p.cut, s + r * ld + c, ld);
  }
};

static void forward(const Runtime& runtime, const LseProblem& p, float* panels, double* lse2,
                    double* cosine) {
  const int64_t block = block_rows(p.x.count > p.y.count ? p.x.count : p.y.count);
  const int64_t rows = (p.x.count + block - 1) / block, columns = (p.y.count + block - 1) / block;
  const int64_t panel_count = columns * block / NR;
  auto* progress = new int[Schedule::progress_size(rows, columns, p.symmetric)];
  auto* top = new float[p.bounded ? 1 : p.x.count];
  for (int64_t i = 0; i < p.x.count; ++i) {
    lse2[i] = 0;
    if (!p.bounded) top[i] = -__builtin_inff();
  }
  Forward f{runtime, p, panels, lse2, top, Schedule(rows, columns, p.symmetric, progress),
            cosine, block, 0, panel_count, round_up(p.d, W) * NR, 0};
  runtime.parallel(workers(runtime, p), Forward::run_pack, &f);
  runtime.parallel(workers(runtime, p), Forward::run_tiles, &f);
  runtime.parallel(workers(runtime, p), Forward::run_finish, &f);
  delete[] progress;
  delete[] top;
}
