// Binds the CPU kernel of augment to torch through its stable ABI. Schema and checks of what users give
// are Python's (fastssl/ops/augment.py); what would read or write elsewhere is refused here as well.
#include "cpu/augment.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/binding.h"
#include "shared/augment_binding.h"

namespace fastssl {
namespace {

const AugmentKernels& augment_kernels() {
#if defined(__x86_64__)
  if (selected_isa() == Isa::avx512) return avx512::augment;
  if (selected_isa() == Isa::avx2) return avx2::augment;
#endif
  return plain::augment;
}

#define FASTSSL_INLINE inline
#include "shared/augment_bounds.h"

void require(bool holds, const char* what, int64_t i) {
  if (!holds) throw std::runtime_error(std::string(what) + " " + std::to_string(i));
}

// Parameters that the kernel may take as they are.
Buffer<float> bounded_parameters(const AugmentProblem& p) {
  for (int64_t i = 0; i < p.images; ++i) {
    const int64_t h = p.sizes[2 * i], w = p.sizes[2 * i + 1];
    require(h > 0 && w > 0 && h < 1 << 24 && w < 1 << 24 && p.offsets[i] >= 0 &&
                p.offsets[i] <= p.bytes - h * w * p.channels,
            "the memory does not hold image", i);
  }
  auto bounded = allocate<float>(p.rows * kAugmentColumns);
  for (int64_t r = 0; r < p.rows; ++r) {
    const float* q = p.parameters + r * kAugmentColumns;
    require(!(q[kTurns] >= 1) || p.height == p.width, "turns are of a square, not in row", r);
    const int64_t* size = p.sizes + 2 * (r % p.images);
    bound_parameters(q, size[0], size[1], p.height, p.width, bounded.get() + r * kAugmentColumns);
  }
  return bounded;
}

Tensor forward(Tensor data, Tensor offsets, Tensor sizes, int64_t channels, bool planar,
               Tensor parameters, int64_t height, int64_t width, int64_t taps,
               std::vector<double> mean, std::vector<double> std, bool quantized, ScalarType dtype,
               bool channels_last) {
  AugmentCall call(data, offsets, sizes, channels, planar, parameters, height, width, taps, mean, std,
                   quantized, dtype, channels_last);
  AugmentProblem& p = call.problem;
  const Buffer<float> bounded = bounded_parameters(p);
  p.parameters = bounded.get();
  struct Context {
    const AugmentProblem& problem;
    int64_t floats, next;
  } context{p, augment_kernels().scratch(p), 0};
  const auto work = [](void* pointer) {
    auto& c = *static_cast<Context*>(pointer);
    auto* memory = static_cast<float*>(scratch(c.floats * int64_t(sizeof(float))));
    const int64_t images = c.problem.images, views = c.problem.rows / images;
    // An image's views one after the other, while a cache holds it.
    for (int64_t i; (i = __atomic_fetch_add(&c.next, 1, __ATOMIC_RELAXED)) < c.problem.rows;)
      augment_kernels().view(c.problem, i % views * images + i / views, memory);
  };
  parallel(std::min(int64_t(torch::stable::get_num_threads()), p.rows), work, &context);
  return call.views();
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("augment_fwd", TORCH_BOX(&fastssl::forward));
}
