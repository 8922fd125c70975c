// Forward with the rows' gradient: Σ_j p_ij y_j beside log Σ_j, where y wants no gradient (a queue).
// Few rows meet many columns, so the columns are cut into segments, each with sums of its own that
// one pass joins in order. y is read once, from where it lies.

struct Mean {
  const Runtime& runtime;
  const LseProblem<real>& p;
  int64_t block_x, row_blocks, segments, segment;  // rows a block, blocks, segments, columns in one
  int64_t ld;                                      // of partial means
  real* sums;                                      // [segments, rows]
  double* top;                                     // [segments, rows], what sums are relative to
  real* means;                                     // [segments, rows, ld]
  double *lse2, *cosine;                           // [rows]
  float* mean;                                     // [rows, d]
  int64_t next, next_row;
  bool finite;

  static constexpr int64_t kColumns = 192;  // at a time

  static void run_units(void* self) { static_cast<Mean*>(self)->units(); }
  static void run_finish(void* self) { static_cast<Mean*>(self)->finish(); }

  void units() {
    const int64_t panel = round_up(p.d, W) * NR, ldw = kColumns + 16;
    auto* weights = static_cast<real*>(runtime.scratch(
        int64_t(sizeof(real)) *
        ((block_x + MC) * ldw + kColumns * p.ld + kColumns / NR * panel)));  // [block_x + MC, ldw]
    real* y = weights + (block_x + MC) * ldw;                                 // [kColumns, ld]
    real* panels = y + kColumns * p.ld;
    for (;;) {
      const int64_t unit = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (unit >= row_blocks * segments) return;
      const int64_t row = unit % row_blocks * block_x, part = unit / row_blocks;
      const int64_t rows = lower(block_x, p.x.count - row), place = part * p.x.count + row;
      const int64_t end = lower((part + 1) * segment, p.y.count);
      for (int64_t column = part * segment; column < end; column += kColumns) {
        const int64_t columns = lower(kColumns, end - column);
        if (!load_columns(column, columns, y)) __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
        for (int64_t c = 0; c < columns; c += NR)
          pack_panel(y + c * p.ld, p.ld, p.d, panels + c / NR * panel);
        weigh(row, rows, column, columns, panels, panel, weights, ldw, place);
        accumulate<true>(weights, ldw, rows, columns, y, p.ld, p.d, means + place * ld, ld);
      }
    }
  }

  bool load_columns(int64_t first, int64_t count, real* y) const {
    bool finite = true;
    for (int64_t c = 0; c < kColumns; ++c) {
      const real* source = p.y.source + (first + c) * p.d;
      const double norm = c < count ? norm_of(source, p.d) : 0;
      finite = finite && norm - norm == 0;
      scaled_row(source, c < count ? p.d : 0, (p.normalized ? inverse_of(norm) : 1) * p.root,
                 y + c * p.ld, p.ld);
    }
    return finite;
  }

  // weights [rows, columns] = powers of a tile, added to the rows' sums
  void weigh(int64_t row, int64_t rows, int64_t column, int64_t columns, const real* panels,
             int64_t panel, real* weights, int64_t ldw, int64_t place) {
    const Exclusions excluded(p, row, column, columns);
    const bool some = excluded.any(rows);
    for (int64_t c = 0; c < columns; c += NR)
      for (int64_t r = 0; r < rows; r += MR)
        multiply(p.x.data + (row + r) * p.ld, p.ld, panels + c / NR * panel, p.d, p.cut,
                 weights + r * ldw + c, ldw);
    for (int64_t r = 0; r < rows; ++r) {
      real* w = weights + r * ldw;
      const vf lowest = splat(-__builtin_inff());
      int32_t at[2] = {-1, -1};
      if (some) excluded.of(r, at);
      const auto allowed = [&](int64_t c) {
        const vi lane = lanes() + lane_t(c);
        return (lane < lane_t(columns)) & (lane != lane_t(at[0])) & (lane != lane_t(at[1]));
      };
      real about = 0;
      if (!p.bounded) {
        vf high = lowest;
        for (int64_t c = 0; c < columns; c += W)
          high = vmax(high, allowed(c) ? load(w + c) * p.sign : lowest);
        about = raise(place + r, highest(high));
      }
      vf total{};
      for (int64_t c = 0; c < columns; c += W) {
        const vf t = load(w + c) * p.sign;
        vf e = p.bounded ? exp2(t) : exp2_clamped(t - about);
        if (some || c + W > columns || !p.bounded) e = allowed(c) ? e : vf{};
        store(w + c, e);
        total += e;
      }
      sums[place + r] += real(sum(total));
    }
  }

  // Raises a row's running maximum, a whole number, and rescales what is relative to it.
  real raise(int64_t at, real high) {
    const double m = __builtin_ceil(high);
    if (m <= top[at]) return top[at] == -__builtin_inf() ? 0 : real(top[at]);
    const double shift = top[at] - m;
    const real by = shift > -1000 ? real(__builtin_ldexp(1.0, int(shift))) : 0;
    sums[at] *= by;
    for (int64_t k = 0; k < ld; k += W) store(means + at * ld + k, load(means + at * ld + k) * by);
    top[at] = m;
    return real(m);
  }

  void finish() {
    for (;;) {
      const int64_t begin = __atomic_fetch_add(&next_row, 16, __ATOMIC_RELAXED);
      if (begin >= p.x.count) return;
      for (int64_t i = begin; i < lower(begin + 16, p.x.count); ++i) join(i);
    }
  }

  void join(int64_t i) {
    double largest = -__builtin_inf(), total = 0;
    for (int64_t s = 0; s < segments; ++s)
      if (top[s * p.x.count + i] > largest) largest = top[s * p.x.count + i];
    real* joined = means + i * ld;  // the first segment's
    for (int64_t s = 0; s < segments; ++s) {
      const int64_t at = s * p.x.count + i;
      const double shift = top[at] - largest;
      const double by = shift > -1000 ? __builtin_ldexp(1.0, int(shift)) : 0;  // NaN gives 0
      total += by * sums[at];
      for (int64_t k = 0; k < ld; k += W) {
        const vf part = load(means + at * ld + k) * real(by);
        store(joined + k, s ? load(joined + k) + part : part);
      }
    }
    const double share = total > 0 ? 1 / (total * p.root) : 0;
    for (int64_t k = 0; k < p.d; ++k) mean[i * p.d + k] = float(joined[k] * share);
    lse2[i] = __builtin_log2(total) + (total > 0 ? largest : 0);
    cosine[i] = p.pair < 0 ? 0 : pair_of(p, i);
  }
};

static bool forward_with_mean(const Runtime& runtime, const LseProblem<real>& p, double* lse2,
                              double* cosine, float* mean) {
  constexpr int64_t kRows = 264;  // with kColumns: what the L2 cache holds beside two blocks
  const int64_t m = p.x.count, block_x = lower(round_up(m, MR), kRows);
  const int64_t row_blocks = (m + block_x - 1) / block_x;
  // As many pieces of work as any machine wants, none shorter than some tiles.
  const int64_t wanted = (64 + row_blocks - 1) / row_blocks;
  const int64_t least = 4 * Mean::kColumns;
  int64_t segment = round_up((p.y.count + wanted - 1) / wanted, Mean::kColumns);
  segment = segment < least ? least : segment;
  const int64_t segments = (p.y.count + segment - 1) / segment, ld = round_up(p.d, W);
  auto* sums = new real[segments * m]();
  auto* top = new double[segments * m];
  for (int64_t i = 0; i < segments * m; ++i) top[i] = p.bounded ? 0 : -__builtin_inf();
  auto* means = new real[segments * m * ld]();
  Mean work{runtime, p, block_x, row_blocks, segments, segment, ld, sums, top, means,
            lse2, cosine, mean, 0, 0, true};
  runtime.parallel(workers(runtime, p), Mean::run_units, &work);
  runtime.parallel(workers(runtime, p), Mean::run_finish, &work);
  delete[] sums;
  delete[] top;
  delete[] means;
  return work.finite;
}
