// What the bindings of augment and augment_parameters make of a call, on any processor, by torch's stable
// ABI. Checks of what users give are Python's.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "shared/augment_parameters.h"
#include "shared/augment_problem.h"

// Hidden, as the tensors in it are.
namespace __attribute__((visibility("hidden"))) fastssl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
const T* values(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

// The tensors of a call of augment, contiguous, and the problem as kernels are told of it.
struct AugmentCall {
  Tensor data, offsets, sizes, parameters, out;
  AugmentProblem problem;

  AugmentCall(const Tensor& all, const Tensor& begins, const Tensor& extents, int64_t channels,
              bool planar, const Tensor& rows, int64_t height, int64_t width, int64_t taps,
              const std::vector<double>& mean, const std::vector<double>& std, bool quantized,
              ScalarType dtype, bool channels_last)
      : data(torch::stable::contiguous(all)), offsets(torch::stable::contiguous(begins)),
        sizes(torch::stable::contiguous(extents)), parameters(torch::stable::contiguous(rows)) {
    const int64_t views = parameters.size(0);
    const std::vector<int64_t> shape =
        channels_last ? std::vector<int64_t>{views, height, width, channels}
                      : std::vector<int64_t>{views, channels, height, width};
    out = torch::stable::new_empty(data, shape, dtype);
    problem = {.data = values<uint8_t>(data),
               .bytes = data.numel(),
               .offsets = values<int64_t>(offsets),
               .sizes = values<int64_t>(sizes),
               .images = offsets.size(0),
               .channels = channels,
               .planar = planar,
               .parameters = values<float>(parameters),
               .rows = views,
               .height = height,
               .width = width,
               .taps = taps,
               .quantized = quantized,
               .element = dtype == ScalarType::BFloat16 ? Element::bfloat16
                          : dtype == ScalarType::Half   ? Element::float16
                                                        : Element::float32,
               .channels_last = channels_last,
               .out = static_cast<char*>(out.mutable_data_ptr())};
    for (int64_t k = 0; k < channels; ++k) {
      problem.gain[k] = float(1 / (255 * std[size_t(k)]));
      problem.bias[k] = float(-mean[size_t(k)] / std[size_t(k)]);
    }
  }

  Tensor views() const {  // [R, C, height, width], whatever their memory format
    if (!problem.channels_last) return out;
    return torch::stable::transpose(torch::stable::transpose(out, 1, 3), 2, 3);
  }
};

// The same of augment_parameters.
struct ParametersCall {
  Tensor sizes, samples, out;
  Chances chances;

  ParametersCall(const Tensor& extents, const Tensor& numbers, const std::vector<double>& given)
      : sizes(torch::stable::contiguous(extents)), samples(torch::stable::contiguous(numbers)),
        out(torch::stable::new_empty(samples, {samples.size(0), kAugmentColumns}, ScalarType::Float)) {
    if (given.size() != kChances) throw std::runtime_error("chances are not as many as they should be");
    std::copy(given.begin(), given.end(), reinterpret_cast<double*>(&chances));
    chances.log_ratio = {std::log(chances.ratio.low), std::log(chances.ratio.high)};
    chances.log_erase_ratio = {std::log(chances.erase_ratio.low), std::log(chances.erase_ratio.high)};
  }
  int64_t rows() const { return samples.size(0); }
  float* drawn() { return static_cast<float*>(out.mutable_data_ptr()); }  // [rows, kAugmentColumns]
};

}  // namespace fastssl
