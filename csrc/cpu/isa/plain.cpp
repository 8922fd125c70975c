// Every hot CPU kernel for any machine the compiler knows: SSE2 on x86-64, NEON on arm64.
#include <sched.h>

#include <cstdint>

#include "cpu/similarity_lse.h"

#define FASTSSL_ISA plain
#define FASTSSL_WIDTH 4
#include "cpu/isa/kernels.h"
