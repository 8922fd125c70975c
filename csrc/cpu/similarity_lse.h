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

// Rows ready for the kernels: float32, unit length where normalised, zero-padded.
struct Rows {
  const float* data;      // [padded rows, ld]
  const float* inv_norm;  // [rows]; 1 where not normalised, 0 where the row has no direction
  int64_t count;
};

struct LseProblem {
  Rows x;                // [M, D]
  Rows y;                // [K, D]; the same data as x in the symmetric case
  int64_t d, ld;         // features; row stride of x and y, in floats
  float scale2;          // scale · log2(e): all exponentials are powers of two
  bool normalized;       // rows were divided by their norms
  bool symmetric;        // y is x
  bool bounded;          // |scale2 · x·y| is small enough for sums without a running maximum
  int64_t cut;           // features summed in one go: long sums lose digits that scale2 multiplies
  int64_t excluded[2];   // row i may not see column (i + offset) mod K; -1: none
  int64_t pair;          // row i's pair is column (i + pair) mod K; -1: none
};

// Upstream gradients of a backward, and where its results go.
struct LseGradients {
  const double* d_lse;   // [M]
  const double* d_pair;  // [M]
  const double* lse2;    // [M] log2 of the sums
  double scale;          // the scale that scale2 stands for
  float* d_x;            // [M, ldg] or null
  float* d_y;            // [K, ldg] or null
  int64_t ldg;
  double* row_scale;     // [M] (or [K], by columns) each row's share of d(scale)
};

struct LseKernels {
  int64_t width;  // floats in a vector; ld and ldg are multiples of it
  // Rows a block holds for a problem of this many rows; padded buffers are multiples of it.
  int64_t (*block)(int64_t rows);
  // Copies src [rows, d] to dst [padded, ld], normalised or not; the largest norm, NaN if any
  // element is not finite.
  double (*prepare)(const Runtime&, const float* src, int64_t rows, int64_t padded, int64_t d,
                    bool normalize, float* dst, int64_t ld, float* inv_norm);
  // panels: room for y, padded; lse2 [M]; cosine [M] of the pairs, 0 without
  void (*forward)(const Runtime&, const LseProblem&, float* panels, double* lse2, double* cosine);
  void (*backward)(const Runtime&, const LseProblem&, const LseGradients&);
};

namespace plain { extern const LseKernels similarity_lse; }
#if defined(__x86_64__)
namespace avx2 { extern const LseKernels similarity_lse; }
namespace avx512 { extern const LseKernels similarity_lse; }
#endif

}  // namespace fastssl
