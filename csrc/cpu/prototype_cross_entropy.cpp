// Binds the CPU kernels of prototype_cross_entropy to torch through its stable ABI. Schema and checks
// are Python's (fastssl/ops/prototype_cross_entropy.py).
#include "cpu/prototype_cross_entropy.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "cpu/binding.h"

namespace fastssl {
namespace {

const PrototypeKernels& prototype_kernels() {
#if defined(__x86_64__)
  if (selected_isa() == Isa::avx512) return avx512::prototype_cross_entropy;
  if (selected_isa() == Isa::avx2) return avx2::prototype_cross_entropy;
#endif
  return plain::prototype_cross_entropy;
}

// The logits as they are, and the centre as float32 and what that leaves.
struct Prototypes {
  std::vector<Tensor> held;
  std::vector<const void*> student, teacher;
  std::vector<float> center, low;
  PrototypeProblem problem;

  Prototypes(const std::vector<Tensor>& students, const std::vector<Tensor>& teachers,
             const std::optional<Tensor>& centers, const std::vector<int64_t>& own,
             double student_temperature, double teacher_temperature) {
    for (const Tensor& t : students) student.push_back(hold(t));
    for (const Tensor& t : teachers) teacher.push_back(hold(t));
    if (centers) split(*centers);
    const ScalarType dtype = students[0].scalar_type();
    problem = {.students = int64_t(student.size()),
               .teachers = int64_t(teacher.size()),
               .rows = students[0].size(0),
               .k = students[0].size(1),
               .student = student.data(),
               .teacher = teacher.data(),
               .element = dtype == ScalarType::BFloat16 ? Element::bfloat16
                          : dtype == ScalarType::Half   ? Element::float16
                                                        : Element::float32,
               .center = center.empty() ? nullptr : center.data(),
               .center_low = low.empty() ? nullptr : low.data(),
               .center_step = centers && centers->dim() == 2 ? students[0].size(1) : 0,
               .own = own.data(),
               .student_scale = 1 / student_temperature,
               .teacher_scale = 1 / teacher_temperature};
  }

  void run(void (*work)(void*)) {
    PrototypeProblem& p = problem;
    // Waking a thread costs about as much as a few thousand exponentials.
    const bool small = (p.students + p.teachers) * p.rows * p.k < int64_t(1) << 15;
    const int64_t threads = small ? 1 : int64_t(torch::stable::get_num_threads());
    const int64_t workers = std::min(threads, p.rows);
    const Buffer<char> memory = allocate<char>(workers * prototype_kernels().scratch(p));
    p.scratch = memory.get();
    parallel(workers, work, &p);
  }

 private:
  const void* hold(const Tensor& t) {
    held.push_back(torch::stable::contiguous(t));
    return held.back().const_data_ptr();
  }

  void split(const Tensor& centers) {
    const Tensor wide = torch::stable::contiguous(torch::stable::to(centers, ScalarType::Double));
    const int64_t count = wide.numel();
    const double* from = doubles(wide);
    center.resize(size_t(count)), low.resize(size_t(count));
    bool exact = true;
    for (int64_t k = 0; k < count; ++k) {
      center[size_t(k)] = float(from[k]);
      low[size_t(k)] = float(from[k] - double(center[size_t(k)]));
      exact = exact && low[size_t(k)] == 0;
    }
    if (exact) low.clear();
  }
};

std::tuple<Tensor, Tensor> forward(std::vector<Tensor> student, std::vector<Tensor> teacher,
                                   std::optional<Tensor> center, std::vector<int64_t> own,
                                   double student_temperature, double teacher_temperature) {
  Prototypes all(student, teacher, center, own, student_temperature, teacher_temperature);
  PrototypeProblem& p = all.problem;
  Tensor loss = vector(student[0], p.rows, ScalarType::Double);
  Tensor stats = torch::stable::new_empty(student[0], {p.students + p.teachers, p.rows, 2},
                                          ScalarType::Double);
  p.loss = mutable_doubles(loss), p.stats = mutable_doubles(stats);
  all.run(prototype_kernels().forward);
  return {loss, stats};
}

Tensor backward(Tensor d_loss, Tensor stats, std::vector<Tensor> student,
                std::vector<Tensor> teacher, std::optional<Tensor> center, std::vector<int64_t> own,
                double student_temperature, double teacher_temperature) {
  Prototypes all(student, teacher, center, own, student_temperature, teacher_temperature);
  PrototypeProblem& p = all.problem;
  Tensor gradient = torch::stable::new_empty(student[0], {p.students, p.rows, p.k});
  const Tensor upstream = torch::stable::contiguous(d_loss), kept = torch::stable::contiguous(stats);
  p.d_loss = doubles(upstream), p.stats = const_cast<double*>(doubles(kept));
  p.gradient = gradient.mutable_data_ptr();
  all.run(prototype_kernels().backward);
  return gradient;
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("prototype_cross_entropy_fwd", TORCH_BOX(&fastssl::forward));
  m.impl("prototype_cross_entropy_bwd", TORCH_BOX(&fastssl::backward));
}
