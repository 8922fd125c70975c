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

#define FASTSSL_ISA avx2
#define FASTSSL_WIDTH 8
#include "cpu/isa/kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
