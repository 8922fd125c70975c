// Binds the CUDA kernels of augment and augment_parameters to torch through its stable ABI. Schemas and
// checks are Python's; numbers that are on the device are checked there (csrc/shared).
#include "cuda/augment.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/shim_utils.h>

#include <string>

#include "shared/augment_binding.h"

namespace __attribute__((visibility("hidden"))) fastssl {
namespace {

void succeed(const char* op, const char* error) {
  if (error) throw std::runtime_error(std::string(op) + " on CUDA: " + error);
}

void* stream_of(const Tensor& t) {
  void* stream = nullptr;
  // Not STABLE_TORCH_ERROR_CODE_CHECK, which torch 2.11 does not have.
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return stream;
}

Tensor augment(Tensor data, Tensor offsets, Tensor sizes, int64_t channels, bool planar,
               Tensor parameters, int64_t height, int64_t width, int64_t taps,
               std::vector<double> mean, std::vector<double> std, bool quantized, ScalarType dtype,
               bool channels_last) {
  const torch::stable::accelerator::DeviceGuard guard(data.get_device_index());
  const AugmentCall call(data, offsets, sizes, channels, planar, parameters, height, width, taps, mean,
                         std, quantized, dtype, channels_last);
  int64_t floats = 0;
  succeed("augment", augment_scratch(call.problem, &floats));
  Tensor scratch = torch::stable::new_empty(call.data, {floats}, ScalarType::Float);
  auto* memory = floats ? static_cast<float*>(scratch.mutable_data_ptr()) : nullptr;
  succeed("augment", launch_augment(call.problem, memory, stream_of(call.data)));
  return call.views();
}

Tensor draw(Tensor sizes, Tensor samples, int64_t seed, int64_t view, int64_t height, int64_t width,
            std::vector<double> chances) {
  const torch::stable::accelerator::DeviceGuard guard(samples.get_device_index());
  ParametersCall call(sizes, samples, chances);
  succeed("augment_parameters",
          launch_augment_parameters(values<int64_t>(call.sizes), values<int64_t>(call.samples),
                                    call.rows(), seed, view, height, width, call.chances, call.drawn(),
                                    stream_of(call.samples)));
  return call.out;
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CUDA, m) {
  m.impl("augment_fwd", TORCH_BOX(&fastssl::augment));
  m.impl("augment_parameters_fwd", TORCH_BOX(&fastssl::draw));
}
