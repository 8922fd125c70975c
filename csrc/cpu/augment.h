// The CPU kernel of augment as the binding sees it: one function per instruction set.
#pragma once
#include "shared/augment_problem.h"

namespace fastssl {

struct AugmentKernels {
  int64_t (*scratch)(const AugmentProblem&);  // floats that a worker needs
  void (*view)(const AugmentProblem&, int64_t row, float* scratch);
};

namespace plain { extern const AugmentKernels augment; }
#if defined(__x86_64__)
namespace avx2 { extern const AugmentKernels augment; }
namespace avx512 { extern const AugmentKernels augment; }
#endif

}  // namespace fastssl
