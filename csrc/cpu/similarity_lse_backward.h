// Backward: each tile's similarities once more, turned into gradient weights in the core's cache,
// then two products. With g = d_lse and p_ij = 2^(t_ij − lse2_i), G_ij = g_i·p_ij + h_j·q_ij, where
// h and q are the same of the columns' sums; they are the rows' own where the matrix is symmetric.
//   d_x_i = scale · Σ_j G_ij y_j,  d_y_j = scale · Σ_i G_ij x_i.

template <class Entry>
struct Backward {
  const Runtime& runtime;
  const LseProblem<real>& p;
  const LseGradients<real>& g;
  const Entry entry;
  double unit;  // largest |d_lse|: weights are relative to it, to stay in range
  // g_i / unit · 2^(whole_i − lse2_i), and whole_i: lse2_i rounded; 0 where bounded, so that one
  // power serves both sums.
  real *weight, *whole;                // [padded rows]
  real *column_weight, *column_whole;  // [padded columns]; null: the columns have no sums
  Schedule schedule;
  int64_t block, next_row;

  static void run_tiles(void* self) { static_cast<Backward*>(self)->tiles(); }
  static void run_finish(void* self) { static_cast<Backward*>(self)->finish(); }

  void weigh(double lse2, double d_lse, real* to_weight, real* to_whole) const {
    const double share = d_lse / unit;
    const bool nothing = share == 0 || lse2 == -__builtin_inf();
    *to_whole = nothing || p.bounded ? 0 : real(__builtin_rint(lse2));
    *to_weight = nothing ? 0 : real(share * __builtin_exp2(*to_whole - lse2));
  }

  int64_t rows_of(const Tile& t) const { return lower(block, p.x.count - t.row * block); }
  int64_t columns_of(const Tile& t) const { return lower(block, p.y.count - t.column * block); }
  int64_t panel_stride() const { return round_up(p.d, W) * NR; }

  void tiles() {
    const int64_t ld = block + 16;
    auto* weights = static_cast<real*>(
        runtime.scratch(
        int64_t(sizeof(real)) * (block * ld + block / NR * panel_stride())));  // [block, ld]
    real* panels = weights + block * ld;
    Tile tile;
    while (schedule.take(tile)) {
      if (!tile.idle) {
        const int64_t rows = rows_of(tile), columns = columns_of(tile);
        const real* x = p.x.data + tile.row * block * p.ld;
        const real* y = p.y.data + tile.column * block * p.ld;
        for (int64_t c = 0; c < columns; c += NR)
          pack_panel(y + c * p.ld, p.ld, p.d, panels + c / NR * panel_stride());
        weigh_tile(tile, rows, columns, x, panels, weights, ld);
        if (g.row_sum) add_up(weights, ld, rows, columns, g.row_sum + tile.row * block);
        if (g.d_x)
          accumulate<true>(weights, ld, rows, columns, y, p.ld, p.d,
                           g.d_x + tile.row * block * g.ldg, g.ldg);
        real* d_columns = p.symmetric ? (tile.row != tile.column ? g.d_x : nullptr) : g.d_y;
        if (d_columns)
          accumulate<false>(weights, ld, columns, rows, x, p.ld, p.d,
                            d_columns + tile.column * block * g.ldg, g.ldg);
      }
      schedule.finish(tile);
    }
  }

  // sums [rows] += Σ_j G_ij
  void add_up(const real* weights, int64_t ld, int64_t rows, int64_t columns, double* sums) const {
    const int64_t whole = columns / W * W;
    for (int64_t r = 0; r < rows; ++r) {
      vf total{};
      for (int64_t c = 0; c < whole; c += W) total += load(weights + r * ld + c);
      double of_row = sum(total);
      for (int64_t c = whole; c < columns; ++c) of_row += weights[r * ld + c];
      sums[r] += unit * of_row;
    }
  }

  // weights [rows, columns] = G of the tile
  void weigh_tile(const Tile& t, int64_t rows, int64_t columns, const real* x, const real* panels,
                  real* weights, int64_t ld) {
    const Exclusions excluded(p, t.row * block, t.column * block, columns);
    const real* row_weight = weight + t.row * block;
    const real* other_weight = column_weight ? column_weight + t.column * block : nullptr;
    if (p.bounded) {
      const Entry e_of = entry;  // in registers
      const bool half = p.symmetric && t.row == t.column;  // the rest is its mirror image
      for (int64_t c = 0; c < columns; c += NR)
        for (int64_t r = 0; r < (half ? lower(rows, c + NR) : rows); r += MR) {
          multiply(x + r * p.ld, p.ld, panels + c / NR * panel_stride(), p.d, p.cut,
                   weights + r * ld + c, ld);
          for (int i = 0; i < MR; ++i)
            for (int v = 0; v < NV; ++v) {
              real* s = weights + (r + i) * ld + c + v * W;
              vf w = splat(row_weight[r + i]);
              if (other_weight) w += load(other_weight + c + v * W);
              store(s, e_of.slope(load(s)) * w);
            }
        }
      if (half) mirror(weights, ld, rows);
    } else {
      products_to(p, t, block, panels, panel_stride(), weights, ld);
      any_range(t, rows, columns, weights, ld);
    }
    if (excluded.any(rows))
      for (int64_t r = 0; r < rows; ++r) {
        int32_t at[2];
        excluded.of(r, at);
        for (int32_t c : at)
          if (c >= 0) weights[r * ld + c] = 0;
      }
  }

  // Fills in below the diagonal what stands above it.
  static void mirror(real* square, int64_t ld, int64_t rows) {
    for (int64_t r = 0; r < rows; r += W)
      for (int64_t c = 0; c < r; c += W) {
        vf v[W];
        for (int l = 0; l < W; ++l) v[l] = load(square + (c + l) * ld + r);
        transpose(v);
        for (int l = 0; l < W; ++l) store(square + (r + l) * ld + c, v[l]);
      }
  }

  // Products to weights where no bound is known: a power about each row's own sum.
  void any_range(const Tile& t, int64_t rows, int64_t columns, real* weights, int64_t ld) {
    const int64_t row0 = t.row * block, column0 = t.column * block;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; c += W) {
        real* s = weights + r * ld + c;
        const vf t = load(s) * p.sign;
        vf w = exp2_clamped(t - whole[row0 + r]) * weight[row0 + r];
        if (column_weight)
          w += exp2_clamped(t - load(column_whole + column0 + c)) * load(column_weight + column0 + c);
        store(s, w);
      }
  }

  // Scale, pairs and normalisation, row by row.
  void finish() {
    const int64_t columns_too = g.d_y ? p.y.count : 0;
    for (;;) {
      const int64_t begin = __atomic_fetch_add(&next_row, 64, __ATOMIC_RELAXED);
      if (begin >= p.x.count + columns_too) return;
      for (int64_t i = begin; i < lower(begin + 64, p.x.count + columns_too); ++i)
        i < p.x.count ? finish_row(i) : finish_column(i - p.x.count);
    }
  }

  // Rows stand times root: what is linear in them is too much by it.
  real gain(double d) const { return real(g.scale * d / p.root); }

  void finish_row(int64_t i) {
    if (!g.d_x) return;
    real* d = g.d_x + i * g.ldg;
    const real* x = p.x.data + i * p.ld;
    if (g.row_scale)
      g.row_scale[i] = unit * exact_dot(x, d, p.d) * (p.symmetric ? 0.5 : 1) / (p.root * p.root);
    scale_row(d, gain(unit));
    if (p.pair >= 0) {
      const real* y = p.y.data + (i + p.pair) % p.y.count * p.ld;
      if (g.row_scale) g.row_scale[i] += g.d_pair[i] * pair_of(p, i);
      add(d, gain(g.d_pair[i]), y);
      if (p.symmetric) {
        const int64_t j = (i + p.x.count - p.pair) % p.x.count;
        add(d, gain(g.d_pair[j]), p.x.data + j * p.ld);
      }
    }
    project(d, x, p.x.inv_norm[i]);
  }

  void finish_column(int64_t j) {
    real* d = g.d_y + j * g.ldg;
    scale_row(d, gain(unit));
    if (p.pair >= 0)
      for (int64_t i = (j + p.y.count - p.pair) % p.y.count; i < p.x.count; i += p.y.count)
        add(d, gain(g.d_pair[i]), p.x.data + i * p.ld);
    project(d, p.y.data + j * p.ld, p.y.inv_norm[j]);
  }

  void scale_row(real* a, real by) const {
    for (int64_t k = 0; k < p.d; k += W) store(a + k, load(a + k) * by);
  }
  void add(real* a, real by, const real* b) const {
    for (int64_t k = 0; k < p.d; k += W) store(a + k, load(a + k) + by * load(b + k));
  }
  // Through the normalisation x = raw · inv_norm: the part along x goes, the rest scales.
  void project(real* d, const real* x, double inv_norm) const {
    if (!p.normalized) return;
    vf along{};
    for (int64_t k = 0; k < p.d; k += W) along += load(x + k) * load(d + k);
    add(d, real(-sum(along) / (p.root * p.root)), x);
    scale_row(d, real(inv_norm));
  }
};

template <class Entry>
static void backward_of(const Entry& entry, const Runtime& runtime, const LseProblem<real>& p,
                        const LseGradients<real>& g) {
  const int64_t block = block_of(p);
  const int64_t rows = (p.x.count + block - 1) / block, columns = (p.y.count + block - 1) / block;
  auto* progress = new int[Schedule::progress_size(rows, columns, p.symmetric)];
  const int64_t padded = rows * block, padded_columns = p.columns ? columns * block : 0;
  auto* weight = new real[2 * (padded + padded_columns)]();
  auto* column_weight = weight + 2 * padded;
  double unit = 0;
  const auto largest = [&](const double* values, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const double size = __builtin_fabs(values[i]);
      unit = size > unit ? size : unit;
    }
  };
  largest(g.d_lse, p.x.count);
  if (p.columns) largest(g.d_column_lse, p.y.count);
  Backward<Entry> b{runtime, p, g, entry, unit > 0 ? unit : 1, weight, weight + padded,
                    p.columns ? column_weight : p.symmetric ? weight : nullptr,
                    p.columns ? column_weight + padded_columns : weight + padded,
                    Schedule(rows, columns, p.symmetric, progress), block, 0};
  for (int64_t i = 0; i < p.x.count; ++i) b.weigh(g.lse2[i], g.d_lse[i], b.weight + i, b.whole + i);
  if (p.columns)
    for (int64_t j = 0; j < p.y.count; ++j)
      b.weigh(g.column_lse2[j], g.d_column_lse[j], b.column_weight + j, b.column_whole + j);
  runtime.parallel(workers(runtime, p), b.run_tiles, &b);
  runtime.parallel(workers(runtime, p), b.run_finish, &b);
  delete[] progress;
  delete[] weight;
}

static void backward(const Runtime& runtime, const LseProblem<real>& p,
                     const LseGradients<real>& g) {
  backward_of(Power{splat(p.sign)}, runtime, p, g);
}
