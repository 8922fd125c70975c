// Binds the CUDA kernels of augment and augment_parameters to torch through its stable ABI. Schemas and
// checks are Python's; numbers that are on the device are checked there (csrc/shared).
#include "cuda/augment.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "shared/augment_parameters.h"

namespace __attribute__((visibility("hidden"))) fastssl {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void succeed(const char* op, const char* error) {
  if (error) throw std::runtime_error(std::string(op) + " on CUDA: " + error);
}

void* stream_of(const Tensor& t) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return stream;
}

template <class T>
const T* values(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

Tensor augment(Tensor data, Tensor offsets, Tensor sizes, int64_t channels, bool planar,
               Tensor parameters, int64_t height, int64_t width, int64_t taps,
               std::vector<double> mean, std::vector<double> std, bool quantized, ScalarType dtype,
               bool channels_last) {
  const torch::stable::accelerator::DeviceGuard guard(data.get_device_index());
  data = torch::stable::contiguous(data);
  offsets = torch::stable::contiguous(offsets);
  sizes = torch::stable::contiguous(sizes);
  parameters = torch::stable::contiguous(parameters);
  AugmentProblem p{.data = values<uint8_t>(data),
                   .bytes = data.numel(),
                   .offsets = values<int64_t>(offsets),
                   .sizes = values<int64_t>(sizes),
                   .images = offsets.size(0),
                   .channels = channels,
                   .planar = planar,
                   .parameters = values<float>(parameters),
                   .rows = parameters.size(0),
                   .height = height,
                   .width = width,
                   .taps = taps,
                   .quantized = quantized,
                   .element = dtype == ScalarType::BFloat16 ? Element::bfloat16
                              : dtype == ScalarType::Half   ? Element::float16
                                                            : Element::float32,
                   .channels_last = channels_last};
  for (int64_t k = 0; k < channels; ++k) {
    p.gain[k] = float(1 / (255 * std[size_t(k)]));
    p.bias[k] = float(-mean[size_t(k)] / std[size_t(k)]);
  }
  const std::vector<int64_t> shape =
      channels_last ? std::vector<int64_t>{p.rows, height, width, channels}
                    : std::vector<int64_t>{p.rows, channels, height, width};
  Tensor out = torch::stable::new_empty(data, shape, dtype);
  p.out = static_cast<char*>(out.mutable_data_ptr());
  int64_t floats = 0;
  succeed("augment", augment_scratch(p, &floats));
  Tensor scratch = torch::stable::new_empty(data, {floats}, ScalarType::Float);
  auto* memory = floats ? static_cast<float*>(scratch.mutable_data_ptr()) : nullptr;
  succeed("augment", launch_augment(p, memory, stream_of(data)));
  if (!channels_last) return out;
  return torch::stable::transpose(torch::stable::transpose(out, 1, 3), 2, 3);  // [R, C, H, W]
}

Tensor draw(Tensor sizes, Tensor samples, int64_t seed, int64_t view, int64_t height, int64_t width,
            std::vector<double> numbers) {
  const torch::stable::accelerator::DeviceGuard guard(samples.get_device_index());
  sizes = torch::stable::contiguous(sizes);
  samples = torch::stable::contiguous(samples);
  if (numbers.size() != kChances) throw std::runtime_error("chances are not as many as they should be");
  Chances chances;
  __builtin_memcpy(&chances, numbers.data(), kChances * sizeof(double));
  chances.log_ratio = {std::log(chances.ratio.low), std::log(chances.ratio.high)};
  chances.log_erase_ratio = {std::log(chances.erase_ratio.low), std::log(chances.erase_ratio.high)};
  Tensor out =
      torch::stable::new_empty(samples, {samples.size(0), kAugmentColumns}, ScalarType::Float);
  succeed("augment_parameters",
          launch_augment_parameters(values<int64_t>(sizes), values<int64_t>(samples), samples.size(0),
                                    seed, view, height, width, chances,
                                    static_cast<float*>(out.mutable_data_ptr()), stream_of(samples)));
  return out;
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CUDA, m) {
  m.impl("augment_fwd", TORCH_BOX(&fastssl::augment));
  m.impl("augment_parameters_fwd", TORCH_BOX(&fastssl::draw));
}
