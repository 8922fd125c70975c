// Binds Kept to torch: of tensors on any device, of which nothing but the descriptions is read.
#include "cpu/kept.h"

#include <torch/csrc/stable/library.h>

namespace fastssl {
namespace {

Tensor keep(Tensors tensors, int64_t written) {
  return handle_of(std::make_unique<Kept>(std::move(tensors), written));
}

bool same(Tensor kept) { return held_by<Kept>(kept).same(); }

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CompositeExplicitAutograd, m) {
  m.impl("keep", TORCH_BOX(&fastssl::keep));
  m.impl("kept_same", TORCH_BOX(&fastssl::same));
}
