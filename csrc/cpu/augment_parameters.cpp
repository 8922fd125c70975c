// Binds augment_parameters, whose arithmetic is in csrc/shared, to torch through its stable ABI. Checks are
// Python's (fastssl/ops/augment_parameters.py).
#include "shared/augment_parameters.h"

#include <torch/csrc/stable/library.h>

#include <stdexcept>
#include <vector>

#include "cpu/binding.h"

namespace fastssl {
namespace {

Chances chances_of(const std::vector<double>& numbers) {
  if (numbers.size() != kChances) throw std::runtime_error("chances are not as many as they should be");
  Chances c;
  std::copy(numbers.begin(), numbers.end(), reinterpret_cast<double*>(&c));
  c.log_ratio = {std::log(c.ratio.low), std::log(c.ratio.high)};
  c.log_erase_ratio = {std::log(c.erase_ratio.low), std::log(c.erase_ratio.high)};
  return c;
}

Tensor draw(Tensor sizes, Tensor samples, int64_t seed, int64_t view, int64_t height, int64_t width,
            std::vector<double> numbers) {
  sizes = torch::stable::contiguous(sizes);
  samples = torch::stable::contiguous(samples);
  const Chances chances = chances_of(numbers);
  const auto* size = static_cast<const int64_t*>(sizes.const_data_ptr());
  const auto* sample = static_cast<const int64_t*>(samples.const_data_ptr());
  const int64_t rows = samples.size(0);
  Tensor out = torch::stable::new_empty(samples, {rows, kAugmentColumns}, ScalarType::Float);
  auto* row = static_cast<float*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, rows, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      draw_parameters(Draws(uint64_t(seed), uint64_t(sample[i]), uint32_t(view)), double(size[2 * i]),
                      double(size[2 * i + 1]), double(height), double(width), chances,
                      row + i * kAugmentColumns);
  });
  return out;
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("augment_parameters_fwd", TORCH_BOX(&fastssl::draw));
}
