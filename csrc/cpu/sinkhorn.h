// The CPU kernels of sinkhorn as the binding sees them: one table per instruction set.
#pragma once
#include <cstdint>

#include "shared/element.h"

namespace fastssl {

// A pass over the scores s [B, K]. With x = factor · s all exponentials are powers of two.
struct SinkhornProblem {
  const void* scores;
  Element element;
  int64_t rows, columns, ld;  // B, K, and K as whole vectors
  double factor;              // log2(e) / epsilon

  // Potentials in base 2. Those of a column are at least the log-sum-exp of x − the rows' before:
  // no power is then above one.
  const double* before;         // [B]
  const double* v;              // [ld]
  const float *v_high, *v_low;  // [ld] their sum is v; the first and the rows' add without rounding
  double grid;                  // of which those are multiples

  double* u;    // [B] the rows' log-sum-exps of x − v
  double* next; // [ld] the columns' log-sum-exps of x − u, of x where there is no u; or null
  float* plan;  // [B, K] 2^(x − u − v), or null

  int64_t chunk, chunks;  // rows whose sums are added up by one thread
  double* sums;           // [chunks, ld]
  float* anchors;         // [chunks, ld] what sums are relative to, where that is not v
  bool* weak;             // [panels] has columns whose sums say little of them

  int64_t tasks, next_task, next_scratch;
  char* scratch;  // one for each worker
};

// All iterations at once, on powers of two that are kept where the plan will be.
struct SinkhornPlanProblem {
  const void* scores;
  Element element;
  int64_t rows, columns, ld;  // B, K, and K as whole vectors
  double factor;              // log2(e) / epsilon

  float* plan;     // [B, K]
  float* factors;  // [ld] of the columns
  bool failed;     // something left the range of the floats: the plan is not one

  int64_t chunk, chunks;  // rows whose sums are added up by one thread
  double* sums;           // [chunks, ld]
  bool backwards;         // the last chunks first: those that caches still hold

  int64_t tasks, next_task, next_scratch;
  char* scratch;  // [ld] floats for each worker
};

struct SinkhornKernels {
  int64_t width, block, panel;             // of vectors; rows and columns worked on together
  int64_t (*scratch)(const SinkhornProblem&);  // bytes that a worker needs
  // Each takes tasks until none is left, on any number of threads.
  void (*rows)(void* problem);     // a chunk: u, plan, the columns' sums relative to v
  void (*columns)(void* problem);  // a chunk of a weak panel: the sums, relative to anchors
  void (*finish)(void* problem);   // a panel: next, from sums relative to v; whether it is weak
  void (*anchored)(void* problem); // a weak panel: next, from sums relative to anchors
  // Of a SinkhornPlanProblem
  void (*plan_powers)(void* problem);   // a chunk: 2^x, the columns' sums
  void (*plan_factors)(void* problem);  // a panel: the columns' factors
  void (*plan_rows)(void* problem);     // a chunk: rows normalised, the columns' sums
  void (*plan_last)(void* problem);     // a chunk: rows normalised in place
};

namespace plain { extern const SinkhornKernels sinkhorn; }
#if defined(__x86_64__)
namespace avx2 { extern const SinkhornKernels sinkhorn; }
namespace avx512 { extern const SinkhornKernels sinkhorn; }
#endif

}  // namespace fastssl
