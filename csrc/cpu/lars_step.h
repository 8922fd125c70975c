// The CPU kernels of lars_step as the binding sees them: one table per instruction set.
#pragma once
#include "cpu/ema_update.h"

namespace fastssl {

// A parameter, its gradient, its velocity, and its average: the parameter itself where there is none.
using LarsChunk = Chunk<4>;

// The vector whose norm a trust ratio divides by, as a sum of the three.
struct LarsChange {
  double param, grad, velocity;
};

// d = grad + weight_decay·param; velocity ← momentum·velocity + gain·d; param ← param − rate·velocity
struct LarsUpdate {
  double weight_decay, momentum, gain, rate;
  bool nesterov;  // param ← param − rate·(momentum·velocity + gain·d)
  EmaStep average;
};

struct LarsKernels {
  // Sums of squares of the parameter and of the change.
  void (*float_norms)(const LarsChunk&, const LarsChange&, double* squares);
  void (*double_norms)(const LarsChunk&, const LarsChange&, double* squares);
  // In float arithmetic; in double where any of the tensors is double.
  void (*float_update)(const LarsChunk&, const LarsUpdate&);
  void (*double_update)(const LarsChunk&, const LarsUpdate&);
};

namespace plain { extern const LarsKernels lars_step; }
#if defined(__x86_64__)
namespace avx2 { extern const LarsKernels lars_step; }
namespace avx512 { extern const LarsKernels lars_step; }
#endif

}  // namespace fastssl
