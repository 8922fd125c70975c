// What a tensor holds, and a stretch of several tensors, as kernels are told of them.
#pragma once
#include <cstdint>

namespace fastssl {

enum class Element { float32, bfloat16, float16, float64, bytes };  // bytes: to be copied only

// As many elements of each of L tensors (a weight, its gradient, its momentum …), side by side.
template <int L>
struct Chunk {
  char* data[L];
  Element element[L];
  int64_t count;   // elements; bytes where the elements are bytes
  int64_t tensor;  // which of the list's
};

}  // namespace fastssl
