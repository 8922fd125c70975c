// The CPU kernels of similarity_softplus as the binding sees them: those of similarity_lse with
// another function of each entry. In float only.
#pragma once
#include "cpu/similarity_lse.h"

namespace fastssl {

struct SoftplusKernels {
  // The problem's exponents are the logits without the bias, sign · (root · x)·(root · y); it counts
  // as bounded. panels: room for y, padded; total [M]; cosine [M]: x·y of the pairs, 0 without
  void (*forward)(const Runtime&, const LseProblem<float>&, float bias, float* panels,
                  double* total, double* cosine);
  // lse2 all zero
  void (*backward)(const Runtime&, const LseProblem<float>&, float bias,
                   const LseGradients<float>&);
};

namespace plain { extern const SoftplusKernels softplus; }
#if defined(__x86_64__)
namespace avx2 { extern const SoftplusKernels softplus; }
namespace avx512 { extern const SoftplusKernels softplus; }
#endif

}  // namespace fastssl
