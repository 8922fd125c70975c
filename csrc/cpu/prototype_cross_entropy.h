// The CPU kernels of prototype_cross_entropy as the binding sees them: one table per instruction set.
#pragma once
#include <cstdint>

#include "shared/element.h"

namespace fastssl {

struct PrototypeProblem {
  int64_t students, teachers, rows, k;
  const void* const* student;  // S of [rows, k]
  const void* const* teacher;  // T of [rows, k]
  Element element;
  const float* center;      // [1 or T, k], or null
  const float* center_low;  // what float32 left of the centre, as many, or null
  int64_t center_step;      // from one teacher's centre to the next
  const int64_t* own;       // [T] the student that a teacher never meets, or -1
  double student_scale, teacher_scale;  // 1/temperature
  double* loss;                         // [rows]
  double* stats;                        // [S + T, rows, 2] largest logit, and Σ exp of those below
  const double* d_loss;                 // [rows], backward only
  void* gradient;                       // [S, rows, k], backward only
  char* scratch;                        // one for each worker
  int64_t next_row, next_scratch;
};

struct PrototypeKernels {
  int64_t (*scratch)(const PrototypeProblem&);  // bytes that a worker needs
  // Take rows until none is left, on any number of threads.
  void (*forward)(void* problem);
  void (*backward)(void* problem);
};

namespace plain { extern const PrototypeKernels prototype_cross_entropy; }
#if defined(__x86_64__)
namespace avx2 { extern const PrototypeKernels prototype_cross_entropy; }
namespace avx512 { extern const PrototypeKernels prototype_cross_entropy; }
#endif

}  // namespace fastssl
