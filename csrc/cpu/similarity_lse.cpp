// Binds the CPU kernels to torch through its stable ABI: tensors in, tensors out, no arithmetic
// beyond what a row needs. Schemas and checks are Python's (fastssl/ops/similarity_lse.py).
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "cpu/binding.h"

namespace fastssl {
namespace {

// Calls `run` with the inputs prepared in float, or in double where float has too few digits.
template <class Run>
auto prepared(const Tensor& x, const std::optional<Tensor>& y, const Options& options,
              bool by_tiles, const std::optional<Tensor>& pairs, const Run& run) {
  const bool small = !options.normalize || std::fabs(options.scale) * kLog2E <= kFloatBound;
  if (small && x.scalar_type() != ScalarType::Double) {
    const Prepared<float> p(x, y, options, by_tiles, pairs);
    if (p.problem.bounded || p.bound != p.bound) return run(p);
  }
  return run(Prepared<double>(x, y, options, by_tiles, pairs));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    Tensor x, std::optional<Tensor> y, std::optional<Tensor> scale, double factor, bool normalize,
    std::optional<int64_t> self_offset, std::optional<int64_t> pair_offset, bool exclude_pair,
    bool columns, bool with_mean, std::optional<Tensor> pairs) {
  const int64_t m = x.size(0), k = columns ? y->size(0) : 0;
  const Options options = {value_of(scale, factor), normalize, self_offset, pair_offset,
                           exclude_pair, columns};
  Tensor lse = vector(x, m, ScalarType::Double), pair = vector(x, m, ScalarType::Double);
  Tensor column_lse = vector(x, k, ScalarType::Double);
  Tensor mean = with_mean ? torch::stable::new_empty(x, {m, x.size(1)}, ScalarType::Float)
                          : vector(x, 0, ScalarType::Float);
  const auto run = [&]<class Real>(const Prepared<Real>& p) {
    const auto& kernel = kernels<Real>();
    if (!p.valid) return false;
    if (with_mean)
      return kernel.mean(runtime(), p.problem, mutable_doubles(lse), mutable_doubles(pair),
                         static_cast<float*>(mean.mutable_data_ptr()));
    const int64_t count = p.problem.y.count;
    const int64_t block = kernel.block(m < count ? m : count);
    const auto panels = allocate<Real>((count + block - 1) / block * block * p.problem.ld);
    kernel.forward(runtime(), p.problem, panels.get(), mutable_doubles(lse),
                   mutable_doubles(column_lse), mutable_doubles(pair));
    return true;
  };
  if (!prepared(x, y, options, with_mean, pairs, run))
    for (auto* result : {&lse, &pair, &column_lse, &mean}) torch::stable::fill_(*result, kNaN);
  for (int64_t i = 0; i < m; ++i) {
    mutable_doubles(lse)[i] *= kLn2;
    mutable_doubles(pair)[i] *= options.scale;
  }
  for (int64_t j = 0; j < k; ++j) mutable_doubles(column_lse)[j] *= kLn2;
  return {lse, pair, column_lse, mean};
}

std::tuple<Tensor, Tensor, Tensor> backward(
    Tensor d_lse, Tensor d_pair, std::optional<Tensor> d_column_lse, Tensor x,
    std::optional<Tensor> y, std::optional<Tensor> scale, Tensor lse,
    std::optional<Tensor> column_lse, double factor, bool normalize,
    std::optional<int64_t> self_offset, std::optional<int64_t> pair_offset, bool exclude_pair,
    bool need_x, bool need_y, bool need_scale) {
  const Options options = {value_of(scale, factor), normalize, self_offset, pair_offset,
                           exclude_pair, column_lse.has_value()};
  const Upstream rows(d_lse, &lse), pairs(d_pair, nullptr);
  std::optional<Upstream> columns;
  if (column_lse) columns.emplace(*d_column_lse, &*column_lse);
  const bool finite = rows.finite && pairs.finite && (!columns || columns->finite);

  const auto none = [&] { return vector(x, 0, x.scalar_type()); };
  Tensor d_x = none(), d_y = none(), d_scale = none();
  prepared(x, y, options, false, std::nullopt, [&]<class Real>(const Prepared<Real>& p) {
    const auto& kernel = kernels<Real>();
    std::optional<GradientRows<Real>> rows_x, rows_y;
    if (need_x || need_scale) rows_x.emplace(x, kernel.width);
    if (need_y) rows_y.emplace(*y, kernel.width);
    std::vector<double> row_scale(need_scale ? size_t(x.size(0)) : 0);
    const bool valid = p.valid && finite;
    if (valid)
      kernel.backward(runtime(), p.problem,
                      {.d_lse = doubles(rows.gradient),
                       .d_pair = doubles(pairs.gradient),
                       .lse2 = doubles(rows.lse2),
                       .d_column_lse = columns ? doubles(columns->gradient) : nullptr,
                       .column_lse2 = columns ? doubles(columns->lse2) : nullptr,
                       .scale = options.scale,
                       .d_x = rows_x ? rows_x->data() : nullptr,
                       .d_y = rows_y ? rows_y->data() : nullptr,
                       .ldg = (x.size(1) + kernel.width - 1) / kernel.width * kernel.width,
                       .row_scale = need_scale ? row_scale.data() : nullptr});
    if (need_x) d_x = rows_x->as(x);
    if (need_y) d_y = rows_y->as(*y);
    double total = 0;
    for (const double share : row_scale) total += share;
    if (need_scale) {
      d_scale = torch::stable::new_empty(*scale, {}, scale->scalar_type());
      torch::stable::fill_(d_scale, total * factor);
    }
    if (!valid)
      for (auto* result : {&d_x, &d_y, &d_scale}) torch::stable::fill_(*result, kNaN);
    return valid;
  });
  return {d_x, d_y, d_scale};
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("similarity_lse_fwd", TORCH_BOX(&fastssl::forward));
  m.impl("similarity_lse_bwd", TORCH_BOX(&fastssl::backward));
}
