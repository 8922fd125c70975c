// The CPU kernels of ema_update as the binding sees them: one table per instruction set.
#pragma once
#include "shared/element.h"

namespace fastssl {

// target ← target + weight·(source − target), or the same from the source's side.
struct EmaStep {
  double weight;    // of the source, 1 − m
  double momentum;  // m
};

struct EmaKernels {
  // Targets and sources, in float arithmetic; in double where either is double.
  void (*float_chunk)(const Chunk<2>&, EmaStep);
  void (*double_chunk)(const Chunk<2>&, EmaStep);
};

namespace plain { extern const EmaKernels ema_update; }
#if defined(__x86_64__)
namespace avx2 { extern const EmaKernels ema_update; }
namespace avx512 { extern const EmaKernels ema_update; }
#endif

}  // namespace fastssl
