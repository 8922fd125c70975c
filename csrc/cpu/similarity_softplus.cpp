// Binds the CPU kernels of similarity_softplus to torch. Schemas and checks are Python's
// (fastssl/ops/similarity_softplus.py).
#include "cpu/similarity_softplus.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "cpu/binding.h"

namespace fastssl {
namespace {

const SoftplusKernels& softplus() {
#if defined(__x86_64__)
  if (selected_isa() == Isa::avx512) return avx512::softplus;
  if (selected_isa() == Isa::avx2) return avx2::softplus;
#endif
  return plain::softplus;
}

struct Logits {
  double scale, bias;
  Prepared<float> rows;
  bool valid;  // everything finite, and far enough from the end of float's range

  Logits(const Tensor& x, const Tensor& y, const std::optional<Tensor>& scale_,
         const std::optional<Tensor>& bias_, double factor, double shift, bool normalize,
         std::optional<int64_t> pair_offset, bool exclude_pair)
      : scale(value_of(scale_, factor)), bias((bias_ ? value_of(bias_, 1) : 0) + shift),
        // Without log2(e), for the exponents are to be natural ones.
        rows(x, y, {scale * kLn2, normalize, std::nullopt, pair_offset, exclude_pair, false}, false) {
    rows.problem.bounded = true;  // softplus takes any
    valid = rows.bound + std::fabs(bias) < 1e34;
  }
};

std::tuple<Tensor, Tensor> forward(Tensor x, Tensor y, std::optional<Tensor> scale,
                                   std::optional<Tensor> bias, double factor, double shift,
                                   bool normalize, std::optional<int64_t> pair_offset,
                                   bool exclude_pair) {
  const int64_t m = x.size(0);
  Tensor total = vector(x, m, ScalarType::Double), pair = vector(x, m, ScalarType::Double);
  const Logits logits(x, y, scale, bias, factor, shift, normalize, pair_offset, exclude_pair);
  if (!logits.valid) {
    for (auto* result : {&total, &pair}) torch::stable::fill_(*result, kNaN);
    return {total, pair};
  }
  const auto& p = logits.rows.problem;
  const int64_t block = kernels<float>().block(m < p.y.count ? m : p.y.count);
  const auto panels = allocate<float>((p.y.count + block - 1) / block * block * p.ld);
  softplus().forward(runtime(), p, float(logits.bias), panels.get(), mutable_doubles(total),
                     mutable_doubles(pair));
  if (pair_offset)
    for (int64_t i = 0; i < m; ++i)
      mutable_doubles(pair)[i] = mutable_doubles(pair)[i] * logits.scale + logits.bias;
  return {total, pair};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    Tensor d_total, Tensor d_pair, Tensor x, Tensor y, std::optional<Tensor> scale,
    std::optional<Tensor> bias, double factor, double shift, bool normalize,
    std::optional<int64_t> pair_offset, bool exclude_pair, bool need_x, bool need_y,
    bool need_scale, bool need_bias) {
  const size_t m = size_t(x.size(0));
  const Logits logits(x, y, scale, bias, factor, shift, normalize, pair_offset, exclude_pair);
  const Upstream totals(d_total, nullptr), pairs(d_pair, nullptr);
  const bool valid = logits.valid && totals.finite && pairs.finite;

  const int64_t width = kernels<float>().width;
  std::optional<GradientRows<float>> rows_x, rows_y;
  if (need_x || need_scale) rows_x.emplace(x, width);
  if (need_y) rows_y.emplace(y, width);
  std::vector<double> row_scale(need_scale ? m : 0), row_sum(need_bias ? m : 0), zero(m);
  if (valid)
    softplus().backward(runtime(), logits.rows.problem, float(logits.bias),
                        {.d_lse = doubles(totals.gradient),
                         .d_pair = doubles(pairs.gradient),
                         .lse2 = zero.data(),
                         .d_column_lse = nullptr,
                         .column_lse2 = nullptr,
                         .scale = logits.scale,
                         .d_x = rows_x ? rows_x->data() : nullptr,
                         .d_y = rows_y ? rows_y->data() : nullptr,
                         .ldg = (x.size(1) + width - 1) / width * width,
                         .row_scale = need_scale ? row_scale.data() : nullptr,
                         .row_sum = need_bias ? row_sum.data() : nullptr});

  const auto none = [&] { return vector(x, 0, x.scalar_type()); };
  const auto scalar = [&](const Tensor& like, double value) {
    Tensor result = torch::stable::new_empty(like, {}, like.scalar_type());
    torch::stable::fill_(result, value);
    return result;
  };
  double d_scale = 0, d_bias = 0;
  for (const double share : row_scale) d_scale += share * factor;
  for (const double share : row_sum) d_bias += share;
  if (pair_offset)
    for (size_t i = 0; i < m; ++i) d_bias += doubles(pairs.gradient)[i];
  std::tuple results{need_x ? rows_x->as(x) : none(), need_y ? rows_y->as(y) : none(),
                     need_scale ? scalar(*scale, d_scale) : none(),
                     need_bias ? scalar(*bias, d_bias) : none()};
  if (!valid)
    std::apply([](auto&... result) { (torch::stable::fill_(result, kNaN), ...); }, results);
  return results;
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("similarity_softplus_fwd", TORCH_BOX(&fastssl::forward));
  m.impl("similarity_softplus_bwd", TORCH_BOX(&fastssl::backward));
}
