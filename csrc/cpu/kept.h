// Tensors that are met again at every step of training, with what they were when first looked at.
//
// Python keeps such a thing as a tensor whose storage it is (`handle_of`), so that it lives as long.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <vector>

namespace __attribute__((visibility("hidden"))) fastssl {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

class Kept {
 public:
  Kept(Tensors tensors, int64_t written) : tensors_(std::move(tensors)), written_(written) {
    look([&](int64_t fact) { return facts_.push_back(fact), true; });
  }

  const Tensors& tensors() const { return tensors_; }

  // Whether every tensor has its address, dtype, device, shape and strides still.
  bool same() const {
    const int64_t* at = facts_.data();
    const int64_t* const end = at + facts_.size();
    return look([&](int64_t fact) { return at != end && *at++ == fact; }) && at == end;
  }

 private:
  Tensors tensors_;
  int64_t written_;  // how many of them, the first, are written to
  std::vector<int64_t> facts_;

  static void ask(AOTITorchError error) {
    if (error != AOTI_TORCH_SUCCESS) throw std::runtime_error("a tensor has no address");
  }

  template <class Fn>
  bool look(const Fn& fact) const {
    for (size_t i = 0; i < tensors_.size(); ++i) {
      const AtenTensorHandle t = tensors_[i].get();
      void* written;
      const void* read;
      int32_t dtype, type, index;
      int64_t dim, *sizes, *strides;
      if (int64_t(i) < written_)
        ask(torch_get_mutable_data_ptr(t, &written)), read = written;
      else
        ask(torch_get_const_data_ptr(t, &read));
      ask(aoti_torch_get_dtype(t, &dtype));
      ask(aoti_torch_get_device_type(t, &type));
      ask(aoti_torch_get_device_index(t, &index));
      ask(aoti_torch_get_dim(t, &dim));
      ask(aoti_torch_get_sizes(t, &sizes));
      ask(aoti_torch_get_strides(t, &strides));
      if (!fact(reinterpret_cast<int64_t>(read)) || !fact(int64_t(type) << 32 | uint32_t(index)) ||
          !fact(int64_t(dtype) << 32 | dim) || !std::all_of(sizes, sizes + dim, fact) ||
          !std::all_of(strides, strides + dim, fact))
        return false;
    }
    return true;
  }
};

// A tensor that owns `what`; nothing but `held_by` knows what to make of it.
template <class T>
Tensor handle_of(std::unique_ptr<T> what) {
  const int64_t size = sizeof(T), stride = 1;
  Tensor handle = torch::stable::from_blob(
      what.get(), {&size, 1}, {&stride, 1}, torch::stable::Device(torch::headeronly::DeviceType::CPU),
      torch::headeronly::ScalarType::Byte, [](void* p) { delete static_cast<T*>(p); });
  what.release();
  return handle;
}

template <class T>
T& held_by(const Tensor& handle) {
  if (handle.numel() != int64_t(sizeof(T))) throw std::runtime_error("a handle of something else");
  return *static_cast<T*>(const_cast<void*>(handle.const_data_ptr()));
}

}  // namespace fastssl
