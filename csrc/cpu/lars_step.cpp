// Binds the CPU kernels of lars_step to torch through its stable ABI. Schema and checks are Python's
// (fastssl/ops/lars_step.py).
#include "cpu/lars_step.h"

#include <torch/csrc/stable/library.h>

#include <sched.h>

#include "cpu/multi_tensor.h"

namespace fastssl {
namespace {

const LarsKernels& lars_kernels() {
#if defined(__x86_64__)
  if (selected_isa() == Isa::avx512) return avx512::lars_step;
  if (selected_isa() == Isa::avx2) return avx2::lars_step;
#endif
  return plain::lars_step;
}

bool is_wide(const LarsChunk& chunk) {
  for (const Element element : chunk.element)
    if (element == Element::float64) return true;
  return false;
}

struct Settings {
  double lr, momentum, weight_decay;
  std::optional<double> trust_coefficient;
  double eps;
  std::string order;
  bool nesterov, separate_norms;
  EmaStep average;

  LarsChange change() const {
    if (separate_norms) return {0, 1, 0};
    if (order != "popular") return {weight_decay, 1, 0};
    const double gained = nesterov ? 1 + momentum : 1;
    return {gained * weight_decay, gained, nesterov ? momentum * momentum : momentum};
  }

  double ratio(double size, double length) const {
    if (separate_norms) length += weight_decay * size;
    return size > 0 && length > 0 ? *trust_coefficient * size / (length + eps) : 1;
  }

  LarsUpdate update(double ratio) const {
    const double step = lr * ratio;
    const double gain = order == "classic" ? step : order == "torch" ? ratio : 1;
    const double rate = order == "classic" ? 1 : order == "torch" ? lr : step;
    return {weight_decay, momentum, gain, rate, nesterov, average};
  }
};

// The norms of a tensor and then its step, while as much as possible of it is still in a cache: a
// tensor of few chunks goes through both in one task; of a larger one the chunks' norms are tasks,
// and then their steps, the last chunk's first. Threads take tasks in order, so that who waits for a
// norm waits for one that is being computed.
class Step {
 public:
  Step(const Settings& settings, MultiTensor<4>& all)
      : settings_(settings), all_(all), squares_(all.chunks.size()), measured_(all.chunks.size()) {
    const auto count = int64_t(all.chunks.size());
    for (int64_t first = 0, last; first < count; first = last) {
      for (last = first; last < count && chunk(last).tensor == chunk(first).tensor;) ++last;
      if (settings_.trust_coefficient && last - first > kTogether)
        for (int64_t i = first; i < last; ++i) tasks_.push_back({first, last, i, i + 1, true, false});
      if (settings_.trust_coefficient && last - first <= kTogether)
        tasks_.push_back({first, last, first, last, true, true});
      else
        for (int64_t i = last; i-- > first;) tasks_.push_back({first, last, i, i + 1, false, true});
    }
  }

  void run() {
    all_.in_turn(int64_t(tasks_.size()), [&](int64_t i) { do_task(tasks_[size_t(i)]); });
  }

 private:
  static constexpr int64_t kTogether = 2;

  struct Task {
    int64_t first, last;  // chunks of the tensor
    int64_t begin, end;   // of the task
    bool norms, update;
  };

  const Settings& settings_;
  MultiTensor<4>& all_;
  std::vector<Task> tasks_;
  std::vector<std::array<double, 2>> squares_;  // of each chunk
  std::vector<int64_t> measured_;               // chunks, by the tensor's first

  const LarsChunk& chunk(int64_t i) const { return all_.chunks[size_t(i)]; }

  void do_task(const Task& task) {
    const LarsKernels& kernels = lars_kernels();
    const bool wide = is_wide(chunk(task.first));
    int64_t* measured = &measured_[size_t(task.first)];
    if (task.norms) {
      const auto norms = wide ? kernels.double_norms : kernels.float_norms;
      for (int64_t i = task.begin; i < task.end; ++i)
        norms(chunk(i), settings_.change(), squares_[size_t(i)].data());
      __atomic_fetch_add(measured, task.end - task.begin, __ATOMIC_RELEASE);
    }
    if (task.update) {
      double ratio = 1;
      if (settings_.trust_coefficient) {
        wait(measured, task.last - task.first);
        ratio = ratio_of(task);
      }
      const LarsUpdate update = settings_.update(ratio);
      for (int64_t i = task.end; i-- > task.begin;)
        (wide ? kernels.double_update : kernels.float_update)(chunk(i), update);
    }
  }

  double ratio_of(const Task& task) const {
    double size = 0, length = 0;
    for (int64_t i = task.first; i < task.last; ++i) {
      size += squares_[size_t(i)][0];
      length += squares_[size_t(i)][1];
    }
    return settings_.ratio(std::sqrt(size), std::sqrt(length));
  }

  static void wait(const int64_t* measured, int64_t count) {
    for (int spins = 0; __atomic_load_n(measured, __ATOMIC_ACQUIRE) < count; ++spins)
      if (spins > 1000) sched_yield();
  }
};

void step(Tensors params, Tensors grads, Tensors velocities, Tensors averages,
          std::optional<Tensor> lr, double factor, double momentum, double weight_decay,
          std::optional<double> trust_coefficient, double eps, std::string order, bool nesterov,
          bool separate_norms, std::optional<Tensor> ema_scalar, double ema_momentum) {
  const double m = value_of(ema_scalar, ema_momentum);
  const Settings settings{value_of(lr, factor), momentum, weight_decay, trust_coefficient, eps,
                          order, nesterov, separate_norms, {1 - m, m}};
  const bool follow = !averages.empty() && m != 1;
  MultiTensor<4> all({&params, &grads, &velocities, follow ? &averages : &params},
                     {true, false, true, true});
  for (const LarsChunk& c : all.chunks)
    if (c.data[0] == c.data[1] || c.data[0] == c.data[2] || c.data[1] == c.data[2])
      throw std::runtime_error("tensors " + std::to_string(c.tensor) + " share memory");
  Step(settings, all).run();
  all.finish();
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("lars_step_fwd", TORCH_BOX(&fastssl::step));
}
