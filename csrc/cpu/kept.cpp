// Binds Kept to torch: of tensors on any device, of which nothing but the descriptions is read.
#include "cpu/kept.h"

#include <torch/csrc/stable/library.h>

namespace fastssl {
namespace {

Tensor keep(Tensors tensors, int64_t written) {
  return handle_of(std::make_unique<Kept>(std::move(tensors), written));
}

bool same(Tensor kept) { return held_by<Kept>(kept).same(); }

Tensor layout(Tensors tensors) { return handle_of(std::make_unique<Layout>(tensors)); }

// [tensors] i64 on the host; none where one is unlike.
Tensor addresses(Tensor handle, Tensors tensors) {
  const auto& layout = held_by<Layout>(handle);
  const auto vector = [&](int64_t size) {
    return torch::stable::new_empty(handle, {size}, torch::headeronly::ScalarType::Long);
  };
  if (tensors.size() != layout.count()) return vector(0);
  Tensor found = vector(int64_t(tensors.size()));
  return layout.addresses(tensors, static_cast<int64_t*>(found.mutable_data_ptr())) ? found : vector(0);
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CompositeExplicitAutograd, m) {
  m.impl("keep", TORCH_BOX(&fastssl::keep));
  m.impl("kept_same", TORCH_BOX(&fastssl::same));
  m.impl("layout", TORCH_BOX(&fastssl::layout));
  m.impl("layout_addresses", TORCH_BOX(&fastssl::addresses));
}
