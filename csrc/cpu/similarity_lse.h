// The CPU kernels of similarity_lse as the binding sees them: one table per instruction set.
#pragma once
#include <cstdint>

namespace fastssl {

// Runs fn(ctx) on up to `workers` threads at once; every call takes work until none is left.
using Parallel = void (*)(int64_t workers, void (*fn)(void*), void* ctx);
// A buffer of this thread, at least `bytes` long, 64-byte aligned, kept between calls.
using Scratch = void* (*)(int64_t bytes);

struct Runtime {
  int64_t threads;
  Parallel parallel;
  Scratch scratch;
};

// The kernels exist in float and in double; Real says which. Rows ready for them: of unit length
// where normalised, times `root`, zero-padded.
template <class Real>
struct Rows {
  const Real* data;        // [padded rows, ld]
  const Real* source;      // [rows, d] as they came
  const double* inv_norm;  // [rows]; 1 where not normalised, 0 where the row has no direction
  int64_t count;
};

template <class Real>
struct LseProblem {
  Rows<Real> x;          // [M, D]
  Rows<Real> y;          // [K, D]; the same data as x in the symmetric case
  int64_t d, ld;         // features; row stride of x and y
  // All exponentials are powers of two: of scale · log2(e) · x·y = sign · (root · x)·(root · y).
  Real sign;
  double root;
  bool normalized;       // rows were divided by their norms
  bool symmetric;        // y is x
  bool columns;          // the columns' sums are wanted too; never where symmetric
  bool bounded;          // exponents are small enough for sums without a running maximum
  int64_t cut;           // features summed in one go: long sums lose digits that scale multiplies
  int64_t excluded[2];   // row i may not see column (i + offset) mod K; -1: none
  int64_t pair;          // row i's pair is column (i + pair) mod K; -1: none
  const Real* pairs;     // [M, d] as they came: row i's pair is row i of these instead; or null
};

// Upstream gradients of a backward, and where its results go.
template <class Real>
struct LseGradients {
  const double* d_lse;          // [M]
  const double* d_pair;         // [M]
  const double* lse2;           // [M] log2 of the sums
  const double* d_column_lse;   // [K] if columns
  const double* column_lse2;    // [K] if columns
  double scale;
  Real* d_x;                    // [M, ldg] or null
  Real* d_y;                    // [K, ldg] or null
  int64_t ldg;
  double* row_scale;            // [M] each row's share of d(scale), or null
  double* row_sum;              // [M] += Σ_j G_ij, or null
};

template <class Real>
struct LseKernels {
  int64_t width;  // elements in a vector; ld and ldg are multiples of it
  // Rows a block holds for a problem of this many rows; padded buffers are multiples of it.
  int64_t (*block)(int64_t rows);
  // Writes src [rows, d], normalised or not, times root, to dst [padded, ld], unless that is null;
  // gives the largest norm, NaN if any element is not finite.
  double (*prepare)(const Runtime&, const Real* src, int64_t rows, int64_t padded, int64_t d,
                    bool normalize, double root, Real* dst, int64_t ld, double* inv_norm);
  // panels: room for y, padded; lse2 [M]; column_lse2 [K] if columns; cosine [M]: x·y of the
  // pairs, 0 without
  void (*forward)(const Runtime&, const LseProblem<Real>&, Real* panels, double* lse2,
                  double* column_lse2, double* cosine);
  void (*backward)(const Runtime&, const LseProblem<Real>&, const LseGradients<Real>&);
  // The forward, and mean [M, D]: Σ_j p_ij y_j. Reads y from its source only; false if an element
  // there is not finite.
  bool (*mean)(const Runtime&, const LseProblem<Real>&, double* lse2, double* cosine, float* mean);
};

#define FASTSSL_DECLARE_KERNELS              \
  extern const LseKernels<float> lse_float;  \
  extern const LseKernels<double> lse_double;
namespace plain { FASTSSL_DECLARE_KERNELS }
#if defined(__x86_64__)
namespace avx2 { FASTSSL_DECLARE_KERNELS }
namespace avx512 { FASTSSL_DECLARE_KERNELS }
#endif
#undef FASTSSL_DECLARE_KERNELS

}  // namespace fastssl
