// Binds the CPU kernels of similarity_topk to torch through its stable ABI. Schema and checks are
// Python's (fastssl/ops/similarity_topk.py).
#include "cpu/similarity_topk.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <functional>
#include <tuple>
#include <vector>

#include "cpu/binding.h"

namespace fastssl {
namespace {

const TopkKernels& topk_kernels() {
#if defined(__x86_64__)
  if (selected_isa() == Isa::avx512) return avx512::similarity_topk;
  if (selected_isa() == Isa::avx2) return avx2::similarity_topk;
#endif
  return plain::similarity_topk;
}

constexpr int64_t kKeys = 1 << 20;  // that a worker may hold

int64_t pieces(int64_t whole, int64_t part) { return (whole + part - 1) / part; }
int64_t round_up(int64_t whole, int64_t part) { return pieces(whole, part) * part; }

void select(uint64_t* keys, int64_t count, int64_t k) {
  std::nth_element(keys, keys + k - 1, keys + count, std::greater<>());
}

// Cuts the work so that every thread has a few pieces: into fewer queries a piece, which costs
// more packing of the bank, then into segments of the bank, which costs more selecting.
void cut(TopkProblem& p, int64_t threads) {
  const auto& kernel = topk_kernels();
  const int64_t queries = p.queries.count, rows = p.bank.count;
  // Selecting is rare where there is room for as many keys again, and a panel's come at once.
  p.capacity = p.k + std::max<int64_t>(16, std::min(p.k, rows - p.k)) + kernel.columns;
  const int64_t wanted = threads > 1 ? 4 * threads : 1;
  int64_t block = 512;
  while (block > 128 && pieces(queries, block) < wanted) block /= 2;
  while (block > kernel.rows && block * p.capacity > kKeys) block /= 2;
  p.block = round_up(pieces(queries, pieces(queries, block)), kernel.rows);
  p.blocks = pieces(queries, p.block);
  const int64_t most = std::max<int64_t>(1, rows / std::max<int64_t>(4096, 16 * p.k));
  p.run = round_up(pieces(rows, std::min(most, pieces(wanted, p.blocks))), kernel.columns);
  p.segments = pieces(rows, p.run);
}

// Rows as they are, and their inverse norms.
struct Source {
  Tensor rows;
  std::vector<double> inv_norm;

  Source(const Tensor& t, bool normalize) : rows(torch::stable::contiguous(t)) {
    if (!is_narrow(t)) rows = torch::stable::to(rows, ScalarType::Float);
    if (!normalize) return;
    inv_norm.resize(size_t(rows.size(0)));
    torch::stable::parallel_for(0, rows.size(0), 1024, [&](int64_t begin, int64_t end) {
      topk_kernels().norms(rows.const_data_ptr(), element(), rows.size(1), begin, end,
                           inv_norm.data());
    });
  }
  static bool is_narrow(const Tensor& t) {
    return t.scalar_type() == ScalarType::BFloat16 || t.scalar_type() == ScalarType::Half;
  }
  Element element() const {
    return rows.scalar_type() == ScalarType::BFloat16 ? Element::bfloat16
           : rows.scalar_type() == ScalarType::Half   ? Element::float16
                                                      : Element::float32;
  }
  TopkRows view() const {
    return {rows.const_data_ptr(), inv_norm.empty() ? nullptr : inv_norm.data(), rows.size(0)};
  }
};

std::tuple<Tensor, Tensor> forward(Tensor queries, Tensor bank, int64_t k, bool normalize) {
  const int64_t count = queries.size(0), d = queries.size(1);
  Tensor values = torch::stable::new_empty(queries, {count, k}, ScalarType::Float);
  Tensor indices = torch::stable::new_empty(queries, {count, k}, ScalarType::Long);
  const Source source(queries, normalize), entries(bank, normalize);
  TopkProblem p{.queries = source.view(), .bank = entries.view(), .element = source.element(),
                .d = d, .k = k, .select = select};
  // Waking a thread costs about as much as a product of this size.
  const bool small = double(count) * double(p.bank.count) * double(d) < double(1 << 23);
  const int64_t threads = small ? 1 : int64_t(torch::stable::get_num_threads());
  cut(p, threads);

  // With one segment the keys fit where the indices will be.
  auto* out = static_cast<int64_t*>(indices.mutable_data_ptr());
  std::vector<uint64_t> several(p.segments == 1 ? 0 : size_t(count * p.segments * k));
  p.found = several.empty() ? reinterpret_cast<uint64_t*>(out) : several.data();
  const int64_t workers = std::min(threads, p.blocks * p.segments);
  const Buffer<char> memory = allocate<char>(workers * topk_kernels().scratch(p));
  p.scratch = memory.get();
  parallel(workers, topk_kernels().work, &p);

  auto* value = static_cast<float*>(values.mutable_data_ptr());
  torch::stable::parallel_for(0, count, small ? count : 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      uint64_t* keys = p.found + i * p.segments * k;
      if (p.segments > 1) select(keys, p.segments * k, k);
      std::sort(keys, keys + k, std::greater<>());
      for (int64_t n = 0; n < k; ++n) {
        const uint64_t key = keys[n];  // whose place the index may take
        value[i * k + n] = topk_value(key);
        out[i * k + n] = topk_row(key);
      }
    }
  });
  return {values, indices};
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("similarity_topk_fwd", TORCH_BOX(&fastssl::forward));
}
