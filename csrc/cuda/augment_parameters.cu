// augment_parameters: a thread a sample, by csrc/shared/augment_parameters.h to the bit. Compiled with
// -fmad=false, so that no sum takes in a product.
#include "shared/augment_parameters.h"

#include "cuda/augment.h"

namespace fastssl {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    augment_parameters_kernel(const int64_t* sizes, const int64_t* samples, int64_t rows, uint64_t seed,
                              uint32_t view, double height, double width,
                              const __grid_constant__ Chances chances, float* out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < rows)
    draw_parameters(Draws(seed, uint64_t(samples[i]), view), double(sizes[2 * i]),
                    double(sizes[2 * i + 1]), height, width, chances, out + i * kAugmentColumns);
}

}  // namespace

const char* launch_augment_parameters(const int64_t* sizes, const int64_t* samples, int64_t rows,
                                      int64_t seed, int64_t view, int64_t height, int64_t width,
                                      const Chances& chances, float* out, void* stream) {
  if (rows == 0) return nullptr;
  augment_parameters_kernel<<<unsigned((rows + kThreads - 1) / kThreads), kThreads, 0,
                              cudaStream_t(stream)>>>(sizes, samples, rows, uint64_t(seed),
                                                      uint32_t(view), double(height), double(width),
                                                      chances, out);
  const cudaError_t launched = cudaGetLastError();
  return launched == cudaSuccess ? nullptr : cudaGetErrorString(launched);
}

}  // namespace fastssl
