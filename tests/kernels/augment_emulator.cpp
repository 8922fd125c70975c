// The CUDA kernels' bodies on a processor: the threads of a block run one after another between
// barriers, in either order or shuffled, in memory full of NaN. Built and called by
// tests/kernels/test_augment_block.py.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "shared/augment_layout.h"
#include "shared/augment_parameters.h"
#include "shared/augment_problem.h"

namespace fastssl {
namespace {

#define FASTSSL_INLINE static inline
#include "cpu/narrow.h"

FASTSSL_INLINE float whole_of(float x) { return float(int(x)); }
FASTSSL_INLINE float apart(float x) { return x; }  // compiled without contraction
FASTSSL_INLINE float fused(float a, float b, float c) { return std::fma(a, b, c); }
FASTSSL_INLINE float larger(float a, float b) { return a > b ? a : b; }
FASTSSL_INLINE float smaller(float a, float b) { return a < b ? a : b; }
#include "shared/augment_pixels.h"
#include "shared/augment_filters.h"
#include "shared/augment_bounds.h"
#include "shared/augment_sides.h"
#include "shared/augment_block.h"

struct Emulated {
  std::vector<int> order;
  std::mt19937 shuffle{1};
  bool shuffled;

  Emulated(int threads, int how) : order(size_t(threads)), shuffled(how == 2) {
    for (int i = 0; i < threads; ++i) order[size_t(i)] = how == 1 ? threads - 1 - i : i;
  }
  int threads() const { return int(order.size()); }
  template <class F>
  void phase(F f) {
    if (shuffled) std::shuffle(order.begin(), order.end(), shuffle);
    for (int thread : order) f(thread);
  }
  void raise(int32_t* slot, int32_t number) { *slot = std::max(*slot, number); }
};

}  // namespace
}  // namespace fastssl

// Where floats is 0, as many as the plan for so many bytes on a chip, and its threads; the plan's.
extern "C" int64_t make_views(const uint8_t* data, int64_t bytes, const int64_t* offsets,
                              const int64_t* sizes, int64_t images, int64_t channels, int planar,
                              const float* parameters, int64_t rows, int64_t height, int64_t width,
                              int64_t taps, const float* gain, const float* bias, int quantized,
                              int element, int channels_last, char* out, int threads, int how,
                              int64_t floats, int64_t on_chip) {
  using namespace fastssl;
  AugmentProblem p{data, bytes, offsets, sizes, images, channels, planar != 0, parameters, rows,
                   height, width, taps, {}, {}, quantized != 0, Element(element), channels_last != 0,
                   out};
  std::copy(gain, gain + channels, p.gain);
  std::copy(bias, bias + channels, p.bias);
  AugmentPlan plan{threads, floats, true};
  if (floats == 0)
    plan = plan_augment({int(height), int(width), int(channels), int(taps), 0}, on_chip);
  struct alignas(16) Quad { float x[4]; };
  std::vector<Quad> memory(size_t(plan.floats / 4) + 1);
  auto* first = reinterpret_cast<float*>(memory.data());
  Emulated block(plan.threads, how);
  for (int64_t row = 0; row < rows; ++row) {
    std::fill(first, first + plan.floats + 4, std::numeric_limits<float>::quiet_NaN());
    if (quantized)
      channels == 3 ? make_view<true, 3>(block, p, row, first, plan.floats)
                    : make_view<true, 1>(block, p, row, first, plan.floats);
    else
      channels == 3 ? make_view<false, 3>(block, p, row, first, plan.floats)
                    : make_view<false, 1>(block, p, row, first, plan.floats);
    for (int i = 0; i < 4; ++i)  // nobody writes beyond
      if (first[plan.floats + i] == first[plan.floats + i]) return -1;
  }
  return plan.on_chip ? plan.threads : 0;
}

// The fewest floats that views of a shape may be given.
extern "C" int64_t fewest_floats(int height, int width, int channels, int taps, int threads) {
  return fastssl::needed_floats({height, width, channels, taps, threads}, 1, 1, 2);
}

extern "C" void exponentials(const double* x, int64_t count, double* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = fastssl::exp_by_arithmetic(x[i]);
}
