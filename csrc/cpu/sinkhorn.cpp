// Binds the CPU kernels of sinkhorn to torch through its stable ABI. Schema and checks are Python's
// (fastssl/ops/sinkhorn.py).
#include "cpu/sinkhorn.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "cpu/binding.h"

namespace fastssl {
namespace {

const SinkhornKernels& sinkhorn_kernels() {
#if defined(__x86_64__)
  if (selected_isa() == Isa::avx512) return avx512::sinkhorn;
  if (selected_isa() == Isa::avx2) return avx2::sinkhorn;
#endif
  return plain::sinkhorn;
}

constexpr int64_t kChunks = 64;  // most of them, whatever the number of threads
constexpr double kFew = 1 << 15;   // entries that one thread does sooner than two
constexpr double kKept = 1 << 23;  // entries whose powers are read again rather than computed

int64_t pieces(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

// As the kernels take them: contiguous, narrow or in float32
Tensor readable(const Tensor& scores) {
  const auto type = scores.scalar_type();
  const bool narrow = type == ScalarType::BFloat16 || type == ScalarType::Half;
  return torch::stable::contiguous(narrow ? scores : torch::stable::to(scores, ScalarType::Float));
}

Element element_of(const Tensor& scores) {
  if (scores.scalar_type() == ScalarType::BFloat16) return Element::bfloat16;
  return scores.scalar_type() == ScalarType::Half ? Element::float16 : Element::float32;
}

// A vector in base 2, padded with zeros; the largest size in it, infinite if one is not finite.
std::vector<double> in_base_2(const std::optional<Tensor>& t, int64_t size, double& largest) {
  std::vector<double> out(size_t(size), 0.0);
  if (!t) return out;
  const Tensor whole = torch::stable::contiguous(torch::stable::to(*t, ScalarType::Double));
  for (int64_t i = 0; i < t->size(0); ++i) {
    out[i] = doubles(whole)[i] * kLog2E;
    const double magnitude = std::fabs(out[i]);
    largest = magnitude <= largest ? largest : std::isfinite(magnitude) ? magnitude : HUGE_VAL;
  }
  return out;
}

template <class Problem>
struct Pass {
  Problem p;
  int64_t threads;

  void run(void (*work)(void*), int64_t tasks) {
    p.tasks = tasks, p.next_task = 0, p.next_scratch = 0;
    parallel(std::min(threads, tasks), work, &p);
  }
};

std::tuple<Tensor, Tensor, Tensor> forward(Tensor scores, double epsilon, std::optional<Tensor> rows,
                                           std::optional<Tensor> columns, bool following,
                                           bool plan, bool finite) {
  const auto& kernel = sinkhorn_kernels();
  const int64_t b = scores.size(0), k = scores.size(1);
  Tensor u = vector(scores, columns ? b : 0, ScalarType::Double);
  Tensor next = vector(scores, following ? k : 0, ScalarType::Double);
  const std::vector<int64_t> shape = plan ? std::vector{b, k} : std::vector<int64_t>{0, 0};
  Tensor q = torch::stable::new_empty(scores, shape, ScalarType::Float);

  const Tensor source = readable(scores);
  const int64_t ld = pieces(k, kernel.width) * kernel.width, panels = pieces(k, kernel.panel);
  double largest = 1;
  const std::vector<double> before = in_base_2(rows, b, largest), v = in_base_2(columns, ld, largest);
  if (largest == HUGE_VAL) {  // NaN comes of NaN
    for (Tensor& t : {std::ref(u), std::ref(next), std::ref(q)}) torch::stable::fill_(t, kNaN);
    return {u, next, q};
  }
  // Numbers of at most 22 binary digits above the grid add up to a float.
  const double grid = std::ldexp(1, std::ilogb(largest) + 1 - 22);
  std::vector<float> high(v.size()), low(v.size());
  for (size_t i = 0; i < v.size(); ++i) {
    high[i] = float(std::rint(v[i] / grid) * grid);
    low[i] = float(v[i] - high[i]);
  }
  const int64_t blocks = pieces(b, kernel.block);
  const int64_t chunk = pieces(blocks, kChunks) * kernel.block, chunks = pieces(b, chunk);
  const auto sums = allocate<double>(following ? chunks * ld : 0);
  std::vector<float> anchors;
  std::vector<char> weak(size_t(panels), 1);
  Pass<SinkhornProblem> pass{{.scores = source.const_data_ptr(),
             .element = element_of(source),
             .rows = b, .columns = k, .ld = ld, .factor = kLog2E / epsilon,
             .before = before.data(), .v = v.data(), .v_high = high.data(), .v_low = low.data(),
             .grid = grid,
             .u = columns ? mutable_doubles(u) : nullptr,
             .next = following ? mutable_doubles(next) : nullptr,
             .plan = plan ? static_cast<float*>(q.mutable_data_ptr()) : nullptr,
             .chunk = chunk, .chunks = chunks, .sums = sums.get(),
             .weak = reinterpret_cast<bool*>(weak.data())},
            double(b) * double(k) < kFew ? 1 : int64_t(torch::stable::get_num_threads())};
  auto& p = pass.p;
  const auto memory = allocate<char>(std::min(pass.threads, chunks * panels) * kernel.scratch(p));
  p.scratch = memory.get();

  if (columns) {
    pass.run(kernel.rows, chunks);
    if (following) pass.run(kernel.finish, panels);
  }
  if (following && std::find(weak.begin(), weak.end(), 1) != weak.end()) {
    anchors.resize(size_t(chunks * ld));
    p.anchors = anchors.data();
    pass.run(kernel.columns, chunks * panels);
    pass.run(kernel.anchored, panels);
  }
  for (int64_t i = 0; i < u.size(0); ++i) mutable_doubles(u)[i] *= kLn2;
  for (int64_t i = 0; i < next.size(0); ++i) {
    double& value = mutable_doubles(next)[i];
    value *= kLn2;
    if (finite && std::isinf(value)) value = value < 0 ? 0 : kNaN;  // left out, or no plan
  }
  return {u, next, q};
}

// Where powers are floats and the caches may keep them; nothing where they are not.
std::optional<Tensor> plan_of_powers(const Tensor& scores, double epsilon, int64_t iterations) {
  const auto& kernel = sinkhorn_kernels();
  const int64_t b = scores.size(0), k = scores.size(1), threads = torch::stable::get_num_threads();
  const int64_t ld = pieces(k, kernel.width) * kernel.width, panels = pieces(k, kernel.panel);
  const int64_t chunk = pieces(pieces(b, kernel.block), kChunks) * kernel.block;
  const int64_t chunks = pieces(b, chunk);
  const Tensor plan = torch::stable::new_empty(scores, {b, k}, ScalarType::Float);
  const auto sums = allocate<double>(chunks * ld);
  const auto factors = allocate<float>(ld);
  const auto memory = allocate<float>(std::min(threads, chunks) * ld);
  Pass<SinkhornPlanProblem> pass{{.scores = scores.const_data_ptr(),
                                  .element = element_of(scores),
                                  .rows = b, .columns = k, .ld = ld, .factor = kLog2E / epsilon,
                                  .plan = static_cast<float*>(plan.mutable_data_ptr()),
                                  .factors = factors.get(), .failed = false,
                                  .chunk = chunk, .chunks = chunks, .sums = sums.get(),
                                  .scratch = reinterpret_cast<char*>(memory.get())},
                                 double(b) * double(k) < kFew ? 1 : threads};
  for (int64_t i = 0; i <= iterations && !pass.p.failed; ++i) {
    pass.run(i == iterations ? kernel.plan_last : i ? kernel.plan_rows : kernel.plan_powers, chunks);
    if (i < iterations && !pass.p.failed) pass.run(kernel.plan_factors, panels);
    pass.p.backwards = !pass.p.backwards;
  }
  return pass.p.failed ? std::nullopt : std::make_optional(plan);
}

Tensor plan(Tensor scores, double epsilon, int64_t iterations) {
  const Tensor source = readable(scores);
  if (double(scores.size(0)) * double(scores.size(1)) <= kKept)
    if (const auto made = plan_of_powers(source, epsilon, iterations)) return *made;
  std::optional<Tensor> rows, columns;
  for (int64_t i = 0; i < iterations; ++i) {
    const auto [u, v, none] = forward(source, epsilon, rows, columns, true, false, true);
    if (i) rows = u;
    columns = v;
  }
  return std::get<2>(forward(source, epsilon, rows, columns, false, true, true));
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("sinkhorn_fwd", TORCH_BOX(&fastssl::forward));
  m.impl("sinkhorn_plan_fwd", TORCH_BOX(&fastssl::plan));
}
