// Rows as the kernels want them: normalised or not, times a factor, padded with zeros.

constexpr double kNormEps = 1e-12;  // shorter rows have no direction

// The length of a row; NaN or infinite if an element is.
FASTSSL_INLINE double norm_of(const real* row, int64_t d) {
  const double squares = exact_dot(row, row, d);
  if (squares > 1e-290 && squares < 1e290) return __builtin_sqrt(squares);
  double largest = 0, total = 0;  // or else the squares leave double's range, in doubles
  for (int64_t k = 0; k < d; ++k) {
    const double size = __builtin_fabs(double(row[k]));
    if (!(size <= 1.7e308)) return __builtin_nan("");
    largest = size > largest ? size : largest;
  }
  if (largest == 0) return 0;
  for (int64_t k = 0; k < d; ++k) total += (row[k] / largest) * (row[k] / largest);
  return largest * __builtin_sqrt(total);
}

FASTSSL_INLINE double inverse_of(double norm) { return norm < kNormEps ? 0 : 1 / norm; }

// out [ld] = row [d] · factor, rounded once, zero-padded
FASTSSL_INLINE void scaled_row(const real* row, int64_t d, double factor, real* out, int64_t ld) {
  const double size = __builtin_fabs(factor);
  const bool representable = sizeof(real) == 8 || (size > 1e-30 && size < 1e30);
  const int64_t whole = representable ? d / W * W : 0;
  for (int64_t k = whole; k < ld; k += W) store(out + k, vf{});
  const vf high = splat(real(factor)), low = splat(real(factor - real(factor)));
  for (int64_t k = 0; k < whole; k += W) store(out + k, load(row + k) * high + load(row + k) * low);
  for (int64_t k = whole; k < d; ++k) out[k] = real(row[k] * factor);
}

// See LseKernels::prepare.
struct Prepare {
  const real* src;
  int64_t rows, padded, d;
  bool normalize;
  double root;
  real* dst;
  int64_t ld;
  double* inv_norm;
  double largest;
  int64_t next;

  static constexpr int64_t kChunk = 64;

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
    const double norm = i < rows ? norm_of(src + i * d, d) : 0;
    const double factor = normalize ? inverse_of(norm) : 1;
    if (i < rows) inv_norm[i] = factor;
    if (dst) scaled_row(src + i * d, i < rows ? d : 0, factor * root, dst + i * ld, ld);
    return norm;
  }
};

static double prepare(const Runtime& runtime, const real* src, int64_t rows, int64_t padded,
                      int64_t d, bool normalize, double root, real* dst, int64_t ld,
                      double* inv_norm) {
  Prepare p{src, rows, padded, d, normalize, root, dst, ld, inv_norm, 0, 0};
  runtime.parallel(padded > Prepare::kChunk * 4 ? runtime.threads : 1, Prepare::run, &p);
  return p.largest;
}
