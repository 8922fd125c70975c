// Binds the CPU kernels of ema_update to torch through its stable ABI. Schema and checks of what the
// tensors are, are Python's (fastssl/ops/ema_update.py).
#include "cpu/ema_update.h"

#include <torch/csrc/stable/library.h>

#include <cstring>

#include "cpu/kept.h"
#include "cpu/multi_tensor.h"

namespace fastssl {
namespace {

const EmaKernels& ema_kernels(const Chunk<2>& chunk) {
#if defined(__x86_64__)
  // Where nothing is converted memory is the limit, and takes 256-bit stores faster: 24 million
  // weights in 7.8 against 9.3 ms on one core of a Zen 4.
  const bool plain_floats =
      chunk.element[0] == Element::float32 && chunk.element[1] == Element::float32;
  if (selected_isa() == Isa::avx512 && !plain_floats) return avx512::ema_update;
  if (selected_isa() != Isa::plain) return avx2::ema_update;
#endif
  return plain::ema_update;
}

bool is_float(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half ||
         type == ScalarType::Double;
}

bool is_integer(ScalarType type) {
  switch (type) {
    case ScalarType::Bool:
    case ScalarType::Byte:
    case ScalarType::Char:
    case ScalarType::Short:
    case ScalarType::Int:
    case ScalarType::Long:
    case ScalarType::UInt16:
    case ScalarType::UInt32:
    case ScalarType::UInt64: return true;
    default: return false;
  }
}

// So that no kernel meets a pair it does not know, whoever calls.
void check(const Tensors& targets, const Tensors& sources) {
  for (size_t i = 0; i < std::min(targets.size(), sources.size()); ++i) {
    const ScalarType target = targets[i].scalar_type(), source = sources[i].scalar_type();
    if (is_float(target) ? !is_float(source) : target != source || !is_integer(target))
      throw std::runtime_error("the dtypes of pair " + std::to_string(i) + " do not go together");
  }
}

// Copies of tensors that are not laid out alike are made anew at every step.
class Update {
 public:
  Update(const Tensors& targets, const Tensors& sources) : all_({&targets, &sources}, {true, false}) {}

  bool copies() const { return all_.copies(); }

  void run(const std::optional<Tensor>& scalar, double momentum) {
    const double m = value_of(scalar, momentum);
    const EmaStep step{1 - m, m};
    all_.run([&](const Chunk<2>& chunk, int64_t) {
      if (chunk.data[0] == chunk.data[1]) return;
      if (chunk.element[0] == Element::bytes)
        std::memcpy(chunk.data[0], chunk.data[1], size_t(chunk.count));
      else if (step.weight == 0)
        return;
      else if (chunk.element[0] == Element::float64 || chunk.element[1] == Element::float64)
        ema_kernels(chunk).double_chunk(chunk, step);
      else
        ema_kernels(chunk).float_chunk(chunk, step);
    });
    all_.finish();
  }

 private:
  MultiTensor<2> all_;
};

void update(Tensors targets, Tensors sources, std::optional<Tensor> scalar, double momentum) {
  check(targets, sources);
  Update(targets, sources).run(scalar, momentum);
}

// The same of tensors that are met again: chunks are made once.
struct KeptUpdate {
  Kept kept;
  Update update;
  Tensors targets, sources;  // that are copied

  KeptUpdate(const Tensors& targets, const Tensors& sources, Tensors both)
      : kept(std::move(both), int64_t(targets.size())), update(targets, sources) {
    if (update.copies()) this->targets = targets, this->sources = sources;
  }
};

Tensor keep(Tensors targets, Tensors sources) {
  check(targets, sources);
  Tensors both = targets;
  both.insert(both.end(), sources.begin(), sources.end());
  return handle_of(std::make_unique<KeptUpdate>(targets, sources, std::move(both)));
}

// Whether it was made: not where a tensor has changed, and then nothing is.
bool again(Tensor handle, std::optional<Tensor> scalar, double momentum) {
  auto& held = held_by<KeptUpdate>(handle);
  if (!held.kept.same()) return false;
  if (held.update.copies())
    Update(held.targets, held.sources).run(scalar, momentum);
  else
    held.update.run(scalar, momentum);
  return true;
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("ema_update_fwd", TORCH_BOX(&fastssl::update));
  m.impl("ema_update_keep", TORCH_BOX(&fastssl::keep));
  m.impl("ema_update_again", TORCH_BOX(&fastssl::again));
}
