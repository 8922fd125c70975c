// Every hot CPU kernel, compiled once for each instruction set: the including file names it
// (FASTSSL_ISA), gives its vectors' width (FASTSSL_WIDTH) and switches the compiler to it. What is
// included before that switch must be all of the standard library that the kernels see.

#include "cpu/augment.h"
#include "cpu/ema_update.h"
#include "cpu/lars_step.h"
#include "cpu/prototype_cross_entropy.h"
#include "cpu/similarity_softplus.h"
#include "cpu/similarity_topk.h"
#include "cpu/sinkhorn.h"

namespace fastssl::FASTSSL_ISA {
namespace {
namespace f32 {
using real = float;
using lane_t = int32_t;
#include "cpu/vec.h"
#include "cpu/narrow.h"
#include "cpu/schedule.h"
#include "cpu/products.h"
#include "cpu/rows.h"
#include "cpu/similarity_lse_forward.h"
#include "cpu/similarity_lse_backward.h"
#include "cpu/similarity_lse_mean.h"
#include "cpu/similarity_softplus_kernel.h"
#include "cpu/similarity_topk_kernel.h"
#include "cpu/stream.h"
#include "cpu/sinkhorn_kernel.h"
#include "cpu/sinkhorn_plan_kernel.h"
#include "cpu/ema_update_kernel.h"
#include "cpu/lars_step_kernel.h"
#include "cpu/prototype_cross_entropy_kernel.h"
#include "cpu/augment_kernel.h"
}  // namespace f32
namespace f64 {
using real = double;
using lane_t = int64_t;
#include "cpu/vec.h"
#include "cpu/narrow.h"
#include "cpu/schedule.h"
#include "cpu/products.h"
#include "cpu/rows.h"
#include "cpu/similarity_lse_forward.h"
#include "cpu/similarity_lse_backward.h"
#include "cpu/similarity_lse_mean.h"
#include "cpu/ema_update_kernel.h"
#include "cpu/lars_step_kernel.h"
}  // namespace f64
}  // namespace
const LseKernels<float> lse_float = {
    f32::W, f32::block_rows, f32::prepare, f32::forward, f32::backward, f32::forward_with_mean};
const LseKernels<double> lse_double = {
    f64::W, f64::block_rows, f64::prepare, f64::forward, f64::backward, f64::forward_with_mean};
const SoftplusKernels softplus = {f32::softplus_forward, f32::softplus_backward};
const TopkKernels similarity_topk = {
    f32::MR, f32::NR, f32::TopkWorker::scratch, f32::topk_norms, f32::TopkWorker::work};
const SinkhornKernels sinkhorn = {f32::W,
                                  f32::kSinkhornRows,
                                  f32::kSinkhornPanel,
                                  f32::sinkhorn_scratch,
                                  f32::sinkhorn_rows,
                                  f32::sinkhorn_columns,
                                  f32::sinkhorn_finish<false>,
                                  f32::sinkhorn_finish<true>,
                                  f32::sinkhorn_plan_powers,
                                  f32::sinkhorn_plan_factors,
                                  f32::sinkhorn_plan_rows,
                                  f32::sinkhorn_plan_last};
const EmaKernels ema_update = {f32::ema_chunk, f64::ema_chunk};
const LarsKernels lars_step = {f32::lars_norms, f64::lars_norms, f32::lars_update,
                               f64::lars_update};
const PrototypeKernels prototype_cross_entropy = {
    f32::prototype_scratch, f32::prototype_work<false>, f32::prototype_work<true>};
const AugmentKernels augment = {f32::augment_scratch, f32::augment_view};
}  // namespace fastssl::FASTSSL_ISA
