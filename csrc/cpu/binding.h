// What the bindings of the similarity ops share: threads and memory for the kernels, and tensors
// made ready for them.
#pragma once
#include "cpu/similarity_lse.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <optional>

#include "shared/isa.h"

// Hidden, as the tensors in it are.
namespace __attribute__((visibility("hidden"))) fastssl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
// A float32 similarity carries an error near 2^-24, an exponent that times the scale: up to this
// bound (a temperature of 0.034 for cosines) losses keep six digits, above it all is in double.
constexpr double kFloatBound = 42;
// Sums of powers of two up to ±this need no running maximum in double, whatever the number.
constexpr double kDoubleBound = 900;

template <class Real>
const LseKernels<Real>& kernels() {
#define FASTSSL_CHOOSE(isa)                                    \
  if constexpr (sizeof(Real) == 4)                             \
    return isa::lse_float;                                     \
  else                                                         \
    return isa::lse_double;
#if defined(__x86_64__)
  if (selected_isa() == Isa::avx512) { FASTSSL_CHOOSE(avx512) }
  if (selected_isa() == Isa::avx2) { FASTSSL_CHOOSE(avx2) }
#endif
  FASTSSL_CHOOSE(plain)
#undef FASTSSL_CHOOSE
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

inline void* scratch(int64_t bytes) {
  thread_local Buffer<char> kept;
  thread_local int64_t size = 0;
  if (bytes > size) {
    kept = allocate<char>(bytes);
    size = bytes;
  }
  return kept.get();
}

inline void parallel(int64_t workers, void (*fn)(void*), void* ctx) {
  if (workers <= 1) return fn(ctx);
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) fn(ctx);
  });
}

inline Runtime runtime() { return {int64_t(torch::stable::get_num_threads()), parallel, scratch}; }

template <class Real>
constexpr ScalarType kType = sizeof(Real) == 4 ? ScalarType::Float : ScalarType::Double;

inline const double* doubles(const Tensor& t) { return static_cast<const double*>(t.const_data_ptr()); }
inline double* mutable_doubles(const Tensor& t) { return static_cast<double*>(t.mutable_data_ptr()); }

inline Tensor vector(const Tensor& like, int64_t size, ScalarType dtype) {
  return torch::stable::new_empty(like, {size}, dtype);
}

struct Options {
  double scale;
  bool normalize;
  std::optional<int64_t> self_offset, pair_offset;
  bool exclude_pair, columns;
};

inline double value_of(const std::optional<Tensor>& scale, double factor) {
  if (!scale) return factor;
  return factor * *doubles(torch::stable::to(*scale, ScalarType::Double));
}

// Rows as the kernels want them, in memory of their own; those that are copied later, by tiles, only
// looked over.
template <class Real>
struct PreparedRows {
  Tensor source;
  Buffer<Real> data;
  Buffer<double> inv_norm;
  double largest;  // norm, before normalisation; NaN if an element is not finite

  PreparedRows(const Tensor& t, int64_t padded, bool normalize, double root, int64_t ld, bool copy)
      : source(torch::stable::contiguous(torch::stable::to(t, kType<Real>))),
        data(allocate<Real>(copy ? padded * ld : 0)), inv_norm(allocate<double>(t.size(0))) {
    largest = kernels<Real>().prepare(runtime(), values(), t.size(0), padded, t.size(1), normalize,
                                      root, copy ? data.get() : nullptr, ld, inv_norm.get());
  }
  const Real* values() const { return static_cast<const Real*>(source.const_data_ptr()); }
  Rows<Real> view() const { return {data.get(), values(), inv_norm.get(), source.size(0)}; }
};

template <class Real>
struct Prepared {
  Tensor source_y;  // where y is read from its source only
  Tensor source_pairs;
  std::optional<PreparedRows<Real>> x, y;
  LseProblem<Real> problem;
  double bound;  // of all exponents; NaN if anything is not finite
  bool valid;

  Prepared(const Tensor& tx, const std::optional<Tensor>& ty, const Options& o, bool by_tiles,
           const std::optional<Tensor>& pairs = std::nullopt) {
    const auto& k = kernels<Real>();
    const int64_t d = tx.size(1), m = tx.size(0), columns = ty ? ty->size(0) : m;
    const int64_t block = k.block(m < columns ? m : columns);
    // An odd number of vectors a row spreads a column of rows over all sets of the cache.
    const int64_t ld = ((d + k.width - 1) / k.width | 1) * k.width;
    const auto padded = [&](int64_t n) { return (n + block - 1) / block * block; };
    // The scale goes into the rows, half into either side, so that it is not rounded by itself.
    const double scale2 = o.scale * kLog2E, size = std::fabs(scale2);
    const bool foldable = size > 1e-12 && size < 1e12;
    const double root = foldable ? std::sqrt(size) : 1;
    x.emplace(tx, padded(m), o.normalize, root, ld, true);
    double largest_y = x->largest;
    if (ty && by_tiles && o.normalize) {
      source_y = torch::stable::contiguous(torch::stable::to(*ty, kType<Real>));
      largest_y = 1;
    } else if (ty) {
      y.emplace(*ty, padded(columns), o.normalize, root, ld, !by_tiles);
      largest_y = y->largest;
    }
    bound = size * (o.normalize ? (x->largest + largest_y) * 0 + 1 : x->largest * largest_y);
    valid = bound < (sizeof(Real) == 4 ? 1e37 : 1e300);  // false for NaN
    Rows<Real> rows_y = y ? y->view() : x->view();
    if (ty && !y)
      rows_y = {nullptr, static_cast<const Real*>(source_y.const_data_ptr()), nullptr, columns};
    if (pairs) source_pairs = torch::stable::contiguous(torch::stable::to(*pairs, kType<Real>));
    problem = {.x = x->view(),
               .y = rows_y,
               .d = d,
               .ld = ld,
               .sign = Real(foldable ? (scale2 < 0 ? -1 : 1) : scale2),
               .root = root,
               .normalized = o.normalize,
               .symmetric = !ty,
               .columns = o.columns,
               .bounded = bound <= (sizeof(Real) == 4 ? kFloatBound : kDoubleBound),
               .cut = sizeof(Real) == 8 ? d : bound <= 8 ? 128 : 64,
               .excluded = {o.self_offset.value_or(-1),
                            o.exclude_pair ? o.pair_offset.value_or(-1) : -1},
               .pair = pairs ? 0 : o.pair_offset.value_or(-1),
               .pairs = pairs ? static_cast<const Real*>(source_pairs.const_data_ptr()) : nullptr};
  }
};

// A gradient that the kernels can write: rows of whole vectors.
template <class Real>
struct GradientRows {
  int64_t d, ld;
  Tensor buffer;  // [rows, ld], zero

  GradientRows(const Tensor& like, int64_t width)
      : d(like.size(1)), ld((d + width - 1) / width * width),
        buffer(torch::stable::new_zeros(like, {like.size(0), ld}, kType<Real>)) {}
  Real* data() const { return static_cast<Real*>(buffer.mutable_data_ptr()); }
  Tensor as(const Tensor& like) const {
    Tensor narrowed = buffer;
    if (ld != d) narrowed = torch::stable::narrow(narrowed, 1, 0, d);
    return torch::stable::contiguous(torch::stable::to(narrowed, like.scalar_type()));
  }
};

// An upstream gradient, and the log-sum-exps it belongs to in base 2 where there are such.
struct Upstream {
  Tensor gradient, lse2;
  bool finite = true;

  Upstream(const Tensor& d, const Tensor* lse)
      : gradient(torch::stable::contiguous(d)), lse2(vector(d, lse ? d.size(0) : 0, d.scalar_type())) {
    for (int64_t i = 0; i < d.size(0); ++i) {
      if (lse) mutable_doubles(lse2)[i] = doubles(*lse)[i] * kLog2E;
      finite = finite && std::isfinite(doubles(gradient)[i]);
    }
  }
};

}  // namespace fastssl
