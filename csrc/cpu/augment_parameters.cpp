// Binds augment_parameters, whose arithmetic is in csrc/shared, to torch through its stable ABI. Checks are
// Python's (fastssl/ops/augment_parameters.py).
#include "shared/augment_binding.h"

#include <torch/csrc/stable/library.h>

namespace fastssl {
namespace {

Tensor draw(Tensor sizes, Tensor samples, int64_t seed, int64_t view, int64_t height, int64_t width,
            std::vector<double> chances) {
  ParametersCall call(sizes, samples, chances);
  const auto *size = values<int64_t>(call.sizes), *sample = values<int64_t>(call.samples);
  float* first = call.drawn();
  torch::stable::parallel_for(0, call.rows(), 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      draw_parameters(Draws(uint64_t(seed), uint64_t(sample[i]), uint32_t(view)), double(size[2 * i]),
                      double(size[2 * i + 1]), double(height), double(width), call.chances,
                      first + i * kAugmentColumns);
  });
  return call.out;
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("augment_parameters_fwd", TORCH_BOX(&fastssl::draw));
}
