// Every hot CPU kernel for any machine the compiler knows: SSE2 on x86-64, NEON on arm64.
#include <sched.h>

#include <cstdint>

#include "cpu/similarity_lse.h"

#define FASTSSL_WIDTH 4
namespace fastssl::plain {
namespace {
#include "cpu/vec.h"
#include "cpu/schedule.h"
#include "cpu/products.h"
#include "cpu/similarity_lse_forward.h"
#include "cpu/similarity_lse_backward.h"
}  // namespace
const LseKernels similarity_lse = {W, block_rows, prepare, forward, backward};
}  // namespace fastssl::plain
