// Binds the CPU kernels of ema_update to torch through its stable ABI. Schema and checks of what the
// tensors are, are Python's (fastssl/ops/ema_update.py).
#include "cpu/ema_update.h"

#include <torch/csrc/stable/library.h>

#include <cstring>

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

// So that no kernel meets a pair it does not know, whoever calls.
void check(const Tensors& targets, const Tensors& sources) {
  for (size_t i = 0; i < std::min(targets.size(), sources.size()); ++i) {
    const bool copied = element_of(targets[i]) == Element::bytes;
    if (copied ? targets[i].scalar_type() != sources[i].scalar_type()
               : element_of(sources[i]) == Element::bytes)
      throw std::runtime_error("the dtypes of pair " + std::to_string(i) + " do not go together");
  }
}

void update(Tensors targets, Tensors sources, std::optional<Tensor> scalar, double momentum) {
  check(targets, sources);
  const double m = value_of(scalar, momentum);
  const EmaStep step{1 - m, m};
  MultiTensor<2> all({&targets, &sources}, {true, false});
  all.run([&](const Chunk<2>& chunk, int64_t) {
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
  all.finish();
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("ema_update_fwd", TORCH_BOX(&fastssl::update));
}
