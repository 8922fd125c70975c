// Every hot CPU kernel, compiled once for each instruction set: the including file names it
// (FASTSSL_ISA), gives its vectors' width (FASTSSL_WIDTH) and switches the compiler to it. What is
// included before that switch must be all of the standard library that the kernels see.

namespace fastssl::FASTSSL_ISA {
namespace {
#include "cpu/vec.h"
#include "cpu/schedule.h"
#include "cpu/products.h"
#include "cpu/similarity_lse_forward.h"
#include "cpu/similarity_lse_backward.h"
}  // namespace
const LseKernels similarity_lse = {W, block_rows, prepare, forward, backward};
}  // namespace fastssl::FASTSSL_ISA
