// Binds the CPU kernels to torch through its stable ABI: tensors in, tensors out, no arithmetic
// beyond what a row needs. Schemas and checks are Python's (fastssl/ops/similarity_lse.py).
#include "cpu/similarity_lse.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "shared/isa.h"

namespace fastssl {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
// Sums of powers of two up to ±kBound need no running maximum, whatever the number of columns.
constexpr double kBound = 80;

const LseKernels& kernels() {
#if defined(__x86_64__)
  if (selected_isa() == Isa::avx512) return avx512::similarity_lse;
  if (selected_isa() == Isa::avx2) return avx2::similarity_lse;
#endif
  return plain::similarity_lse;
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;

template <class T>
Buffer<T> allocate(int64_t count) {
  const int64_t bytes = (count * int64_t(sizeof(T)) + 63) / 64 * 64;
  auto* p = static_cast<T*>(std::aligned_alloc(64, size_t(bytes > 0 ? bytes : 64)));
  if (!p) throw std::bad_alloc();
  return Buffer<T>(p);
}

void* scratch(int64_t bytes) {
  thread_local Buffer<char> kept;
  thread_local int64_t size = 0;
  if (bytes > size) {
    kept = allocate<char>(bytes);
    size = bytes;
  }
  return kept.get();
}

void parallel(int64_t workers, void (*fn)(void*), void* ctx) {
  if (workers <= 1) return fn(ctx);
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) fn(ctx);
  });
}

Runtime runtime() { return {int64_t(torch::stable::get_num_threads()), parallel, scratch}; }

const float* floats(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }
double* doubles(const Tensor& t) { return static_cast<double*>(t.mutable_data_ptr()); }

Tensor vector(const Tensor& like, int64_t size, ScalarType dtype) {
  return torch::stable::new_empty(like, {size}, dtype);
}

// Rows as the kernels want them, in memory of their own.
struct PreparedRows {
  Buffer<float> data, inv_norm;
  int64_t count;
  double largest;  // norm, before normalisation; NaN if an element is not finite

  PreparedRows(const Tensor& t, int64_t padded, bool normalize, int64_t ld)
      : data(allocate<float>(padded * ld)), inv_norm(allocate<float>(t.size(0))), count(t.size(0)) {
    const Tensor source = torch::stable::contiguous(torch::stable::to(t, ScalarType::Float));
    largest = kernels().prepare(runtime(), floats(source), count, padded, t.size(1), normalize,
                                data.get(), ld, inv_norm.get());
  }
  Rows view() const { return {data.get(), inv_norm.get(), count}; }
};

double value_of(const std::optional<Tensor>& scale, double factor) {
  if (!scale) return factor;
  const Tensor wide = torch::stable::to(*scale, ScalarType::Double);
  return factor * *static_cast<const double*>(wide.const_data_ptr());
}

struct Prepared {
  std::optional<PreparedRows> x, y;
  LseProblem problem;
  double scale;  // what scale2 stands for, after its rounding to float32
  bool valid;    // everything finite; otherwise every result is NaN

  Prepared(const Tensor& tx, const std::optional<Tensor>& ty, const std::optional<Tensor>& scale_,
           double factor, bool normalize, std::optional<int64_t> self_offset,
           std::optional<int64_t> pair_offset, bool exclude_pair) {
    const auto& k = kernels();
    const int64_t d = tx.size(1), m = tx.size(0), columns = ty ? ty->size(0) : m;
    const int64_t block = k.block(m > columns ? m : columns);
    // An odd number of vectors a row spreads a column of rows over all sets of the cache.
    const int64_t ld = ((d + k.width - 1) / k.width | 1) * k.width;
    const auto padded = [&](int64_t n) { return (n + block - 1) / block * block; };
    x.emplace(tx, padded(m), normalize, ld);
    if (ty) y.emplace(*ty, padded(columns), normalize, ld);

    const float scale2 = float(value_of(scale_, factor) * kLog2E);
    scale = double(scale2) * kLn2;
    const double largest_y = y ? y->largest : x->largest;
    const double bound =
        std::fabs(scale2) * (normalize ? (x->largest + largest_y) * 0 + 1 : x->largest * largest_y);
    valid = bound < 1e37;  // false for NaN
    problem = {.x = x->view(),
               .y = y ? y->view() : x->view(),
               .d = d,
               .ld = ld,
               .scale2 = scale2,
               .normalized = normalize,
               .symmetric = !ty,
               .bounded = bound <= kBound,
               .cut = bound <= 8 ? 128 : bound <= kBound ? 64 : 32,
               .excluded = {self_offset.value_or(-1), exclude_pair ? pair_offset.value_or(-1) : -1},
               .pair = pair_offset.value_or(-1)};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    Tensor x, std::optional<Tensor> y, std::optional<Tensor> scale, double factor, bool normalize,
    std::optional<int64_t> self_offset, std::optional<int64_t> pair_offset, bool exclude_pair,
    bool, bool) {
  const int64_t m = x.size(0);
  Tensor lse = vector(x, m, ScalarType::Double), pair = vector(x, m, ScalarType::Double);
  const Prepared p(x, y, scale, factor, normalize, self_offset, pair_offset, exclude_pair);
  const auto& k = kernels();
  if (!p.valid) {
    torch::stable::fill_(lse, kNaN);
    torch::stable::fill_(pair, kNaN);
    return {lse, pair, vector(x, 0, ScalarType::Double), vector(x, 0, ScalarType::Float)};
  }
  {
    const int64_t columns = p.problem.y.count, block = k.block(m > columns ? m : columns);
    const auto panels = allocate<float>((columns + block - 1) / block * block * p.problem.ld);
    k.forward(runtime(), p.problem, panels.get(), doubles(lse), doubles(pair));
  }
  for (int64_t i = 0; i < m; ++i) {
    doubles(lse)[i] *= kLn2;
    doubles(pair)[i] *= p.scale;
  }
  return {lse, pair, vector(x, 0, ScalarType::Double), vector(x, 0, ScalarType::Float)};
}

// A gradient buffer the kernels can write: the result itself where its rows are whole vectors of
// float32, otherwise padded memory that is copied over.
struct GradientRows {
  Tensor result;
  int64_t rows, d, ld;
  Tensor buffer;  // [rows, ld], zero

  GradientRows(const Tensor& like, int64_t ld_)
      : rows(like.size(0)), d(like.size(1)), ld(ld_),
        buffer(torch::stable::new_zeros(like, {rows, ld}, ScalarType::Float)) {}
  float* data() const { return static_cast<float*>(buffer.mutable_data_ptr()); }
  Tensor as(const Tensor& like) const {
    Tensor narrowed = buffer;
    if (ld != d) narrowed = torch::stable::narrow(narrowed, 1, 0, d);
    return torch::stable::contiguous(torch::stable::to(narrowed, like.scalar_type()));
  }
};

std::tuple<Tensor, Tensor, Tensor> backward(
    Tensor d_lse, Tensor d_pair, std::optional<Tensor>, Tensor x, std::optional<Tensor> y,
    std::optional<Tensor> scale, Tensor lse, std::optional<Tensor>, double factor, bool normalize, std::optional<int64_t> self_offset,
    std::optional<int64_t> pair_offset, bool exclude_pair, bool need_x, bool need_y,
    bool need_scale) {
  const int64_t m = x.size(0);
  const Prepared p(x, y, scale, factor, normalize, self_offset, pair_offset, exclude_pair);
  const auto& k = kernels();
  const Tensor upstream = torch::stable::contiguous(d_lse);
  const Tensor upstream_pair = torch::stable::contiguous(d_pair);
  Tensor lse2 = vector(x, m, ScalarType::Double);
  bool valid = p.valid;
  const auto* g = static_cast<const double*>(upstream.const_data_ptr());
  const auto* gp = static_cast<const double*>(upstream_pair.const_data_ptr());
  for (int64_t i = 0; i < m; ++i) {
    doubles(lse2)[i] = doubles(lse)[i] * kLog2E;
    valid = valid && std::isfinite(g[i]) && std::isfinite(gp[i]);
  }

  const int64_t width = k.width, ldg = (x.size(1) + width - 1) / width * width;
  std::optional<GradientRows> d_x, d_y;
  if (need_x || need_scale) d_x.emplace(x, ldg);
  if (need_y) d_y.emplace(*y, ldg);
  std::vector<double> row_scale(size_t(m), 0.0);
  if (valid)
    k.backward(runtime(), p.problem,
               {.d_lse = g,
                .d_pair = gp,
                .lse2 = doubles(lse2),
                .scale = p.scale,
                .d_x = d_x ? d_x->data() : nullptr,
                .d_y = d_y ? d_y->data() : nullptr,
                .ldg = ldg,
                .row_scale = row_scale.data()});
  const auto finished = [&](const std::optional<GradientRows>& rows, const Tensor& like) {
    Tensor result = rows->as(like);
    if (!valid) torch::stable::fill_(result, kNaN);
    return result;
  };
  const auto none = [&] { return vector(x, 0, x.scalar_type()); };
  Tensor d_scale = none();
  if (need_scale) {
    double total = valid ? 0 : kNaN;
    for (const double share : row_scale) total += share;
    d_scale = torch::stable::new_empty(*scale, {}, scale->scalar_type());
    torch::stable::fill_(d_scale, total * factor);
  }
  return {need_x ? finished(d_x, x) : none(), need_y ? finished(d_y, *y) : none(), d_scale};
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("similarity_lse_fwd", TORCH_BOX(&fastssl::forward));
  m.impl("similarity_lse_bwd", TORCH_BOX(&fastssl::backward));
}
