// Every hot CPU kernel once more, for AVX-512.
#if defined(__x86_64__)
#include <sched.h>

#include <cstdint>

#include "cpu/similarity_lse.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,prfchw"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,prfchw")
#endif

#define FASTSSL_ISA avx512
#define FASTSSL_WIDTH 16
#include "cpu/isa/kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
