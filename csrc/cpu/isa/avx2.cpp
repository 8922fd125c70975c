// Every hot CPU kernel once more, for AVX2 with FMA.
#if defined(__x86_64__)
#include <sched.h>

#include <cstdint>

#include "cpu/similarity_lse.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,prfchw"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,prfchw")
#endif

#define FASTSSL_WIDTH 8
namespace fastssl::avx2 {
namespace {
#include "cpu/vec.h"
#include "cpu/schedule.h"
#include "cpu/products.h"
#include "cpu/similarity_lse_forward.h"
#include "cpu/similarity_lse_backward.h"
}  // namespace
const LseKernels similarity_lse = {W, block_rows, prepare, forward, backward};
}  // namespace fastssl::avx2

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
