// augment: one launch, a block of threads a view, nothing asked of the host. Tests run its body on a CPU
// and compile it; no GPU has run or timed it. Estimates:
//
// Counted for a view of 224² in bfloat16 from 54 % of 375 × 500, as SimCLR has it:
//   bytes        301 KB written, 304 KB read (of a 256² source 106 KB): 140 ns at 4.3 TB/s
//   arithmetic   instructions a pixel of the view (50,176), all colours: narrowing 80 (1.4 rows of the
//                crop to one of the view, 4 weights), heightening 40, jitter 170 with four divisions, a
//                blur of 14 taps on average 100 for every second view, writing 25. A view may take 606
//                if 132 × 4 warps at 1.8 GHz are to make one in a microsecond.
//   on chip      a read of shared memory to each product of the resize but for its weights, one to three
//                of the blur's
// Arithmetic decides, not bytes: hence so much in registers, float32 throughout, and these choices.
//
// Contrast needs the mean of all that comes before it. Three planes of float32 are 602 KB, more than a
// multiprocessor has, and 16 bits are not exact to 1e-5. Kept by a cluster of four blocks they would
// leave room for no second view on those multiprocessors to compute while one waits at a barrier; in
// global memory they would be 1.2 MB of traffic a view, and more than the L2 cache for those at work. So
// the view is resized twice, by strips: once for the mean, once to be written: 120 instructions a pixel
// for the eight in ten that need it.
//
// A strip is up to 16 rows of the view: rows of the crop are narrowed into shared memory, from them come
// rows of the view, which are changed in registers and written, or, where they are to be blurred, kept in
// a ring as high as the strip and the blur. Only narrowed rows, the ring and the strip on its way through
// the blur are on the chip: 111 KB at 224² with 23 taps, so that two blocks share a multiprocessor, four
// at 96². The crop's bytes are read by way of L1, each by threads of a strip. A crop of any size does:
// what does not fit is narrowed by groups of rows, whose sums wait for the rest, and weights too many for
// a table are computed where they are used. Views so wide that a strip of one row does not fit
// (thousands of pixels) work in global memory, by as many blocks as there are multiprocessors.
//
// Turned views are written by columns, with a sector of memory for each element.
//
// The body is in csrc/shared/augment_block.h, which tests run on a CPU.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/augment.h"
#include "shared/augment_layout.h"

namespace fastssl {
namespace {

#define FASTSSL_INLINE static __device__ __forceinline__
using BFloat16 = __nv_bfloat16;
using Float16 = __half;

// Compiled with -fmad=false: a product is rounded by itself unless it is asked for otherwise.
FASTSSL_INLINE float whole_of(float x) { return truncf(x); }
FASTSSL_INLINE float apart(float x) { return x; }
FASTSSL_INLINE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
FASTSSL_INLINE float larger(float a, float b) { return fmaxf(a, b); }
FASTSSL_INLINE float smaller(float a, float b) { return fminf(a, b); }
FASTSSL_INLINE void narrow(float x, float& out) { out = x; }
FASTSSL_INLINE void narrow(float x, BFloat16& out) { out = __float2bfloat16_rn(x); }
FASTSSL_INLINE void narrow(float x, Float16& out) { out = __float2half_rn(x); }
#include "shared/augment_pixels.h"
#include "shared/augment_filters.h"
#include "shared/augment_bounds.h"
#include "shared/augment_sides.h"
#include "shared/augment_block.h"

struct CudaBlock {
  __device__ int threads() const { return int(blockDim.x); }
  template <class F>
  __device__ __forceinline__ void phase(F f) const {
    f(int(threadIdx.x));
    __syncthreads();
  }
  __device__ void raise(int32_t* slot, int32_t number) const { atomicMax(slot, number); }
};

// scratch: null, or so many floats of global memory for each block.
template <bool quantized, int C>
__global__ void __launch_bounds__(kMostThreads) augment_kernel(const __grid_constant__ AugmentProblem p,
                                                               int64_t floats, float* scratch) {
  extern __shared__ float4 on_chip[];
  float* memory = scratch ? scratch + blockIdx.x * floats : reinterpret_cast<float*>(on_chip);
  CudaBlock block;
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x)
    make_view<quantized, C>(block, p, row, memory, floats);
}

using Kernel = void (*)(AugmentProblem, int64_t, float*);

Kernel kernel_of(const AugmentProblem& p) {
  if (p.quantized) return p.channels == 3 ? augment_kernel<true, 3> : augment_kernel<true, 1>;
  return p.channels == 3 ? augment_kernel<false, 3> : augment_kernel<false, 1>;
}

struct Chip {
  int bytes = 0, processors = 0;
  const char* error = nullptr;
};

Chip this_chip() {
  Chip chip;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&chip.bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&chip.processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) chip.error = cudaGetErrorString(error);
  return chip;
}

AugmentPlan plan_of(const AugmentProblem& p, const Chip& chip) {
  return plan_augment({int(p.height), int(p.width), int(p.channels), int(p.taps), 0}, chip.bytes);
}

int64_t blocks_of(const AugmentProblem& p, const Chip& chip, const AugmentPlan& plan) {
  const int64_t most = plan.on_chip ? int64_t(1) << 30 : chip.processors;
  return p.rows < most ? p.rows : most;
}

}  // namespace

const char* augment_scratch(const AugmentProblem& p, int64_t* floats) {
  const Chip chip = this_chip();
  const AugmentPlan plan = plan_of(p, chip);
  *floats = plan.on_chip ? 0 : plan.floats * blocks_of(p, chip, plan);
  return chip.error;
}

const char* launch_augment(const AugmentProblem& p, float* scratch, void* stream) {
  const Chip chip = this_chip();
  if (chip.error) return chip.error;
  const AugmentPlan plan = plan_of(p, chip);
  const Kernel kernel = kernel_of(p);
  const int bytes = plan.on_chip ? int(4 * plan.floats) : 0;
  const cudaError_t allowed =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (allowed != cudaSuccess) return cudaGetErrorString(allowed);
  kernel<<<unsigned(blocks_of(p, chip, plan)), plan.threads, bytes, cudaStream_t(stream)>>>(
      p, plan.floats, scratch);
  const cudaError_t launched = cudaGetLastError();
  return launched == cudaSuccess ? nullptr : cudaGetErrorString(launched);
}

}  // namespace fastssl
