// All tensors of a model in one parallel region: lists of tensors as chunks of flat memory.
//
// Lists cross the stable ABI: a schema's `Tensor(a!)[]` is a std::vector<Tensor> to a boxed function.
//
//   MultiTensor<2> all({&targets, &sources}, {true, false});  // throws, naming the pair
//   all.run([&](const Chunk<2>& chunk, int64_t index) { kernel(chunk, …); });
//
// `index` counts the chunks, which cut every tensor alike at any number of threads: partial sums kept
// by chunk and added in order are repeatable. all.chunks[index].tensor says whose they are.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "cpu/binding.h"
#include "shared/element.h"

namespace __attribute__((visibility("hidden"))) fastssl {

using Tensors = std::vector<Tensor>;

constexpr int64_t kChunk = 1 << 15;     // elements: long enough to stream, short enough to balance
constexpr int64_t kSerial = 1 << 17;    // bytes below which waking a thread costs more

inline Element element_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Element::float32;
    case ScalarType::BFloat16: return Element::bfloat16;
    case ScalarType::Half: return Element::float16;
    case ScalarType::Double: return Element::float64;
    default: return Element::bytes;
  }
}

template <class A, class B>
bool equal(const A& a, const B& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());
}

// Whether the elements fill a stretch of memory, each once, in whatever order of dimensions.
inline bool dense(const Tensor& t) {
  if (t.is_contiguous()) return true;
  std::vector<std::pair<int64_t, int64_t>> dims;  // (stride, size)
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) != 1) dims.emplace_back(t.stride(d), t.size(d));
  std::sort(dims.begin(), dims.end());
  int64_t next = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != next) return false;
    next *= size;
  }
  return true;
}

template <int L>
class MultiTensor {
 public:
  std::vector<Chunk<L>> chunks;

  // The i-th tensors of all lists must have one shape. Where `written` says so a list's are results:
  // none of them may share memory with another tensor, but the i-th with the i-th of another list
  // exactly, for the kernel to see. Tensors that are not laid out alike go by way of copies.
  MultiTensor(const std::array<const Tensors*, L>& lists, const std::array<bool, L>& written) {
    const size_t count = lists[0]->size();
    for (int l = 1; l < L; ++l)
      if (lists[l]->size() != count) fail("lists of tensors differ in length");
    for (size_t i = 0; i < count; ++i) add(lists, written, int64_t(i));
    check_apart();
  }

  // fn(chunk, index) for every chunk, on all threads; may be called again for another pass.
  template <class Fn>
  void run(const Fn& fn) {
    in_turn(int64_t(chunks.size()), [&](int64_t i) { fn(chunks[size_t(i)], i); });
  }

  // fn(i) for i from 0 to `tasks`, which all threads take in this order.
  template <class Fn>
  void in_turn(int64_t tasks, const Fn& fn) const {
    struct Context {
      const Fn* fn;
      int64_t tasks, next;
    } context{&fn, tasks, 0};
    const auto work = [](void* p) {
      auto& c = *static_cast<Context*>(p);
      for (int64_t i; (i = __atomic_fetch_add(&c.next, 1, __ATOMIC_RELAXED)) < c.tasks;) (*c.fn)(i);
    };
    const int64_t threads = bytes_ < kSerial ? 1 : int64_t(torch::stable::get_num_threads());
    parallel(std::min(threads, tasks), work, &context);
  }

  // Whether some tensors are worked on by way of a copy, as they are now.
  bool copies() const { return !copies_.empty(); }

  // Takes results back to tensors that were worked on by way of a copy: after the last pass.
  void finish() {
    for (auto& c : copies_)
      if (c.written) torch::stable::copy_(c.tensor, c.copy);
  }

 private:
  struct Extent {
    const char *begin, *end;
    int64_t tensor;
    bool written;
  };

  struct Copy {
    Tensor tensor, copy;
    bool written;
  };

  int64_t bytes_ = 0;
  std::vector<Extent> extents_;
  std::vector<Copy> copies_;

  [[noreturn]] static void fail(const std::string& what) { throw std::runtime_error(what); }

  void add(const std::array<const Tensors*, L>& lists, const std::array<bool, L>& written, int64_t i) {
    const Tensor& first = (*lists[0])[size_t(i)];
    bool alike = true;
    for (int l = 0; l < L; ++l) {
      const Tensor& t = (*lists[l])[size_t(i)];
      if (!t.is_cpu()) fail("tensor " + std::to_string(i) + " is not on the CPU");
      if (!equal(t.sizes(), first.sizes())) fail("tensors " + std::to_string(i) + " differ in shape");
      if (written[l]) {
        t.mutable_data_ptr();  // of its own from now on, where it was a lazy copy
        for (int64_t d = 0; d < t.dim(); ++d)
          if (t.size(d) > 1 && !t.stride(d)) fail("tensor " + std::to_string(i) + " is expanded");
      }
      alike = alike && equal(t.strides(), first.strides());
    }
    if (!first.numel()) return;
    const bool direct = alike && dense(first);
    Chunk<L> chunk;
    chunk.tensor = i;
    std::array<int64_t, L> sizes;
    const int64_t all = first.numel();
    for (int l = 0; l < L; ++l) {
      const Tensor& t = (*lists[l])[size_t(i)];
      chunk.element[l] = element_of(t);
      sizes[l] = int64_t(t.element_size());
      const int before = same_as_before(lists, l, i);
      if (before >= 0) {
        chunk.data[l] = chunk.data[before];
        continue;
      }
      if (dense(t)) extents_.push_back({data(t), data(t) + all * sizes[l], i, written[l]});
      Tensor used = t;
      if (!direct && !t.is_contiguous()) {
        used = torch::stable::contiguous(t);
        copies_.push_back({t, used, written[l]});
      }
      chunk.data[l] = data(used);
    }
    for (int64_t done = 0; done < all; done += kChunk) {
      chunk.count = std::min(kChunk, all - done);
      if (chunk.element[0] == Element::bytes) chunk.count *= sizes[0];
      chunks.push_back(chunk);
      for (int l = 0; l < L; ++l) chunk.data[l] += kChunk * sizes[l];
    }
    for (int l = 0; l < L; ++l) bytes_ += all * sizes[l];
  }

  static char* data(const Tensor& t) { return static_cast<char*>(const_cast<void*>(t.const_data_ptr())); }

  // The list before l whose i-th tensor is the same elements of the same memory; -1: none.
  static int same_as_before(const std::array<const Tensors*, L>& lists, int l, int64_t i) {
    const Tensor& t = (*lists[l])[size_t(i)];
    for (int k = 0; k < l; ++k) {
      const Tensor& other = (*lists[k])[size_t(i)];
      if (data(other) == data(t) && other.scalar_type() == t.scalar_type() &&
          equal(other.strides(), t.strides()))
        return k;
    }
    return -1;
  }

  // No result lies where another tensor does.
  void check_apart() {
    std::sort(extents_.begin(), extents_.end(),
              [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
    const Extent *read = nullptr, *write = nullptr;  // those that end last, so far
    for (const Extent& e : extents_) {
      for (const Extent* other : {e.written ? read : nullptr, write})
        if (other && other->end > e.begin)
          fail("tensors " + std::to_string(other->tensor) + " and " + std::to_string(e.tensor) +
               " share memory, and one of them is written");
      const Extent*& last = e.written ? write : read;
      if (!last || last->end < e.end) last = &e;
    }
  }
};

}  // namespace fastssl
