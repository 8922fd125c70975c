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

// fact(number) for all that says where a tensor lies and how, the address first; whether each held.
template <class Fn>
bool all_facts(const Tensor& tensor, bool written, const Fn& fact) {
  const auto ask = [](AOTITorchError error) {
    if (error != AOTI_TORCH_SUCCESS) throw std::runtime_error("a tensor has no address");
  };
  const AtenTensorHandle t = tensor.get();
  void* to;
  const void* from;
  int32_t dtype, type, index;
  int64_t dim, *sizes, *strides;
  if (written)
    ask(torch_get_mutable_data_ptr(t, &to)), from = to;
  else
    ask(torch_get_const_data_ptr(t, &from));
  ask(aoti_torch_get_dtype(t, &dtype));
  ask(aoti_torch_get_device_type(t, &type));
  ask(aoti_torch_get_device_index(t, &index));
  ask(aoti_torch_get_dim(t, &dim));
  ask(aoti_torch_get_sizes(t, &sizes));
  ask(aoti_torch_get_strides(t, &strides));
  return fact(reinterpret_cast<int64_t>(from)) && fact(int64_t(type) << 32 | uint32_t(index)) &&
         fact(int64_t(dtype) << 32 | dim) && std::all_of(sizes, sizes + dim, fact) &&
         std::all_of(strides, strides + dim, fact);
}

// Tensors themselves.
class Kept {
 public:
  Kept(Tensors tensors, int64_t written) : tensors_(std::move(tensors)), written_(written) {
    look([&](int64_t fact) { return facts_.push_back(fact), true; });
  }

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

  template <class Fn>
  bool look(const Fn& fact) const {
    for (size_t i = 0; i < tensors_.size(); ++i)
      if (!all_facts(tensors_[i], int64_t(i) < written_, fact)) return false;
    return true;
  }
};

// How tensors lie, of which others come each time: gradients.
class Layout {
 public:
  explicit Layout(const Tensors& tensors) : count_(tensors.size()) {
    for (const Tensor& t : tensors)
      all_facts(t, false, [&](int64_t fact) { return facts_.push_back(fact), true; });
  }

  size_t count() const { return count_; }

  // Their addresses; false: one is not like that in its place, or has none (a sparse one).
  bool addresses(const Tensors& tensors, int64_t* out) const try {
    const int64_t* at = facts_.data();
    const int64_t* const end = at + facts_.size();
    for (const Tensor& t : tensors) {
      const int64_t* const first = at;
      const auto like = [&](int64_t fact) {
        if (at == first) *out++ = fact;
        return at != end && (at++ == first || at[-1] == fact);
      };
      if (!all_facts(t, false, like)) return false;
    }
    return at == end;
  } catch (const std::runtime_error&) {
    return false;
  }

 private:
  size_t count_;
  std::vector<int64_t> facts_;
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
