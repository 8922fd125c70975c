// The CUDA kernels of augment and augment_parameters as the binding sees them: on the current device;
// null, or what went wrong.
#pragma once
#include "shared/augment_problem.h"

namespace fastssl {

struct Chances;

const char* augment_scratch(const AugmentProblem&, int64_t* floats);  // of global memory that it needs
const char* launch_augment(const AugmentProblem&, float* scratch, void* stream);

// One row of parameters for each sample: [rows, kAugmentColumns].
const char* launch_augment_parameters(const int64_t* sizes, const int64_t* samples, int64_t rows,
                                      int64_t seed, int64_t view, int64_t height, int64_t width,
                                      const Chances&, float* out, void* stream);

}  // namespace fastssl
