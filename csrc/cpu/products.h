// The two matrix products of a tile, as register-blocked loops over packed or padded operands.

// S = A·Bᵀ: MR rows of A times a panel of NR rows of B, packed [d][NR].
constexpr int NV = 3, NR = NV * W;
constexpr bool kManyRegisters = FASTSSL_WIDTH == 16;  // 32 of them, not 16
constexpr int MR = kManyRegisters ? 8 : 4;
// C += G·B: MC rows of C times NC·W of its columns.
constexpr int NC = 2;
constexpr int MC = kManyRegisters ? 12 : 6;

// Packs up to NR rows (zero-padded rows must follow) of a padded [rows, ld] buffer into [d][NR].
FASTSSL_INLINE void pack_panel(const real* rows, int64_t ld, int64_t d, real* panel) {
  for (int64_t k = 0; k < d; k += W)
    for (int j = 0; j < NR; j += W) {
      vf v[W];
      for (int l = 0; l < W; ++l) v[l] = load(rows + (j + l) * ld + k);
      transpose(v);
      for (int l = 0; l < W; ++l) store(panel + (k + l) * NR + j, v[l]);
    }
}

// out [MR, NR] = a [MR rows, lda] · panel over `depth` features, or += it. Kept out of line:
// inlined, the caller's constants take the registers that the sums need.
template <bool ADD>
static __attribute__((noinline)) void multiply_panel(const real* a, int64_t lda,
                                                     const real* panel, int64_t depth, real* out,
                                                     int64_t ldo) {
  vf acc[MR][NV];
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) acc[r][v] = vf{};
  for (int64_t k = 0; k < depth; ++k) {
    vf b[NV];
    for (int v = 0; v < NV; ++v) b[v] = load(panel + k * NR + v * W);
    for (int r = 0; r < MR; ++r) {
      const vf s = splat(a[r * lda + k]);
      for (int v = 0; v < NV; ++v) acc[r][v] += s * b[v];
    }
  }
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) {
      real* p = out + r * ldo + v * W;
      store(p, ADD ? load(p) + acc[r][v] : acc[r][v]);
    }
}

// out [MR, NR] = a · panel over all d features, in sums of at most `cut`
FASTSSL_INLINE void multiply(const real* a, int64_t lda, const real* panel, int64_t d, int64_t cut,
                             real* out, int64_t ldo) {
  multiply_panel<false>(a, lda, panel, lower(cut, d), out, ldo);
  for (int64_t k = cut; k < d; k += cut)
    multiply_panel<true>(a + k, lda, panel + k * NR, lower(cut, d - k), out, ldo);
}

// c [rows ≤ MC, N·W columns] += Σ_k g(r, k) · b[k, N·W columns]
template <int N>
static __attribute__((noinline)) void accumulate_group(const real* g, int64_t g_row, int64_t g_k,
                                                       int64_t depth, const real* b, int64_t ldb,
                                                       real* c, int64_t ldc, int64_t rows) {
  vf acc[MC][N];
  for (int r = 0; r < MC; ++r)
    for (int v = 0; v < N; ++v) {
      acc[r][v] = vf{};
      // Another core may have written c last: ask for it now, wanted when the sums are done.
      __builtin_prefetch(c + r * ldc + v * W, 1);
    }
  for (int64_t k = 0; k < depth; ++k) {
    vf x[N];
    for (int v = 0; v < N; ++v) x[v] = load(b + k * ldb + v * W);
    for (int r = 0; r < MC; ++r) {
      const vf s = splat(g[r * g_row + k * g_k]);
      for (int v = 0; v < N; ++v) acc[r][v] += s * x[v];
    }
  }
  for (int r = 0; r < MC && r < rows; ++r)
    for (int v = 0; v < N; ++v) {
      real* p = c + r * ldc + v * W;
      store(p, load(p) + acc[r][v]);
    }
}

// c [rows, d] += g [rows, depth] · b [depth, d]; g is read MC rows at a time, past `rows` too.
// ROW_MAJOR: g(r, k) = g[r·ldg + k]; otherwise its transpose.
template <bool ROW_MAJOR>
static void accumulate(const real* g, int64_t ldg, int64_t rows, int64_t depth, const real* b,
                       int64_t ldb, int64_t d, real* c, int64_t ldc) {
  const int64_t g_row = ROW_MAJOR ? ldg : 1, g_k = ROW_MAJOR ? 1 : ldg;
  for (int64_t j = 0; j < d; j += NC * W)
    for (int64_t r = 0; r < rows; r += MC) {
      const real* rows_of_g = g + r * g_row;
      if (j + W < d)
        accumulate_group<NC>(rows_of_g, g_row, g_k, depth, b + j, ldb, c + r * ldc + j, ldc, rows - r);
      else
        accumulate_group<1>(rows_of_g, g_row, g_k, depth, b + j, ldb, c + r * ldc + j, ldc, rows - r);
    }
}
