// Backward: each tile's similarities once more, turned into gradient weights in the core's cache,
// then two products. With g = d_lse, p_ij = 2^(t_ij − lse2_i) and, where the matrix is symmetric,
// G_ij = g_i·p_ij + g_j·p_ji:  d_x_i = scale · Σ_j G_ij x_j.

struct Backward {
  const Runtime& runtime;
  const LseProblem& p;
  const LseGradients& g;
  double unit;       // largest |d_lse|: weights are relative to it, to stay in float32's range
  float* weight;     // [padded rows] g_i / unit · 2^(whole_i − lse2_i)
  float* whole;      // [padded rows] lse2_i rounded; 0 where bounded, so that one power serves both
  Schedule schedule;
  int64_t block, next_row;

  static void run_tiles(void* self) { static_cast<Backward*>(self)->tiles(); }
  static void run_finish(void* self) { static_cast<Backward*>(self)->finish(); }

  void weigh(int64_t i) {
    const double lse2 = g.lse2[i], share = g.d_lse[i] / unit;
    const bool nothing = share == 0 || lse2 == -__builtin_inf();
    whole[i] = nothing || p.bounded ? 0 : float(__builtin_rint(lse2));
    weight[i] = nothing ? 0 : float(share * __builtin_exp2(whole[i] - lse2));
  }

  int64_t rows_of(const Tile& t) const { return lower(block, p.x.count - t.row * block); }
  int64_t columns_of(const Tile& t) const { return lower(block, p.y.count - t.column * block); }
  int64_t panel_stride() const { return round_up(p.d, W) * NR; }

  void tiles() {
    const int64_t ld = block + 16;
    auto* weights = static_cast<float*>(
        runtime.scratch(4 * (block * ld + block / NR * panel_stride())));  // [block, ld]
    float* panels = weights + block * ld;
    Tile tile;
    while (schedule.take(tile)) {
      if (!tile.idle) {
        const int64_t rows = rows_of(tile), columns = columns_of(tile);
        const float* x = p.x.data + tile.row * block * p.ld;
        const float* y = p.y.data + tile.column * block * p.ld;
        for (int64_t c = 0; c < columns; c += NR)
          pack_panel(y + c * p.ld, p.ld, p.d, panels + c / NR * panel_stride());
        weigh_tile(tile, rows, columns, x, panels, weights, ld);
        if (g.d_x)
          accumulate<true>(weights, ld, rows, columns, y, p.ld, p.d,
                           g.d_x + tile.row * block * g.ldg, g.ldg);
        float* d_columns = p.symmetric ? (tile.row != tile.column ? g.d_x : nullptr) : g.d_y;
        if (d_columns)
          accumulate<false>(weights, ld, columns, rows, x, p.ld, p.d,
                            d_columns + tile.column * block * g.ldg, g.ldg);
      }
      schedule.finish(tile);
    }
  }

  // weights [rows, columns] = G of the tile
  void weigh_tile(const Tile& t, int64_t rows, int64_t columns, const float* x, const float* panels,
                  float* weights, int64_t ld) {
    const Exclusions excluded(p, t.row * block, t.column * block, columns);
    const float* row_weight = weight + t.row * block;
    const float* column_weight = weight + t.column * block;
    if (p.bounded) {
      const vf scale = splat(p.scale2);
      const bool half = p.symmetric && t.row == t.column;  // the rest is its mirror image
      for (int64_t c = 0; c < columns; c += NR)
        for (int64_t r = 0; r < (half ? lower(rows, c + NR) : rows); r += MR) {
          multiply(x + r * p.ld, p.ld, panels + c / NR * panel_stride(), p.d, p.cut,
                   weights + r * ld + c, ld);
          for (int i = 0; i < MR; ++i)
            for (int v = 0; v < NV; ++v) {
              float* s = weights + (r + i) * ld + c + v * W;
              vf w = splat(row_weight[r + i]);
              if (p.symmetric) w += load(column_weight + c + v * W);
              store(s, exp2(load(s) * scale) * w);
            }
        }
      if (half) mirror(weights, ld, rows);
    } else {
      Forward::products_to(p, t, block, panels, panel_stride(), weights, ld);
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
  static void mirror(float* square, int64_t ld, int64_t rows) {
    for (int64_t r = 0; r < rows; r += W)
      for (int64_t c = 0; c < r; c += W) {
        vf v[W];
        for (int l = 0; l < W; ++l) v[l] = load(square + (c + l) * ld + r);
        transpose(v);
        for (int l = 0; l < W; ++l) store(square + (r + l) * ld + c, v[l]);
      }
  }

  // Products to weights where no bound is known: a power about each row's own sum.
  void any_range(const Tile& t, int64_t rows, int64_t columns, float* weights, int64_t ld) {
    const int64_t row0 = t.row * block, column0 = t.column * block;
    const vf scale = splat(p.scale2);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; c += W) {
        float* s = weights + r * ld + c;
        const vf product = load(s);
        vf w = exp2_clamped(product * scale - whole[row0 + r]) * weight[row0 + r];
        if (p.symmetric)
          w += exp2_clamped(product * scale - load(whole + column0 + c)) * load(weight + column0 + c);
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

  void finish_row(int64_t i) {
    if (!g.d_x) return;
    float* d = g.d_x + i * g.ldg;
    const float* x = p.x.data + i * p.ld;
    double share = unit * dot(x, d) * (p.symmetric ? 0.5 : 1);
    scale_row(d, float(g.scale * unit));
    if (p.pair >= 0) {
      const float* y = p.y.data + (i + p.pair) % p.y.count * p.ld;
      share += g.d_pair[i] * dot(x, y);
      add(d, float(g.scale * g.d_pair[i]), y);
      if (p.symmetric) {
        const int64_t j = (i + p.x.count - p.pair) % p.x.count;
        add(d, float(g.scale * g.d_pair[j]), p.x.data + j * p.ld);
      }
    }
    g.row_scale[i] = share;
    project(d, x, p.x.inv_norm[i]);
  }

  void finish_column(int64_t j) {
    float* d = g.d_y + j * g.ldg;
    scale_row(d, float(g.scale * unit));
    if (p.pair >= 0)
      for (int64_t i = (j + p.y.count - p.pair) % p.y.count; i < p.x.count; i += p.y.count)
        add(d, float(g.scale * g.d_pair[i]), p.x.data + i * p.ld);
    project(d, p.y.data + j * p.ld, p.y.inv_norm[j]);
  }

  double dot(const float* a, const float* b) const {
    vf total{};
    for (int64_t k = 0; k < p.d; k += W) total += load(a + k) * load(b + k);
    return sum(total);
  }
  void scale_row(float* a, float by) const {
    for (int64_t k = 0; k < p.d; k += W) store(a + k, load(a + k) * by);
  }
  void add(float* a, float by, const float* b) const {
    for (int64_t k = 0; k < p.d; k += W) store(a + k, load(a + k) + by * load(b + k));
  }
  // Through the normalisation x = raw · inv_norm: the part along x goes, the rest scales.
  void project(float* d, const float* x, float inv_norm) const {
    if (!p.normalized) return;
    add(d, float(-dot(x, d)), x);
    scale_row(d, inv_norm);
  }
};

static void backward(const Runtime& runtime, const LseProblem& p, const LseGradients& g) {
  const int64_t largest = p.x.count > p.y.count ? p.x.count : p.y.count;
  const int64_t block = block_rows(largest), padded = round_up(largest, block);
  const int64_t rows = (p.x.count + block - 1) / block, columns = (p.y.count + block - 1) / block;
  auto* progress = new int[Schedule::progress_size(rows, columns, p.symmetric)];
  auto* weight = new float[2 * padded]();
  double unit = 0;
  for (int64_t i = 0; i < p.x.count; ++i) {
    const double size = __builtin_fabs(g.d_lse[i]);
    unit = size > unit ? size : unit;
  }
  Backward b{runtime, p, g, unit > 0 ? unit : 1, weight, weight + padded,
             Schedule(rows, columns, p.symmetric, progress), block, 0};
  for (int64_t i = 0; i < p.x.count; ++i) b.weigh(i);
  runtime.parallel(workers(runtime, p), Backward::run_tiles, &b);
  runtime.parallel(workers(runtime, p), Backward::run_finish, &b);
  delete[] progress;
  delete[] weight;
}
