// One stretch of an average and of what it follows: read both, write one.

// Each reaches its end exactly, as the nearer end is where it starts from.
template <bool from_target, class T, class S>
static void ema_lerp(T* __restrict target, const S* __restrict source, int64_t count, EmaStep step) {
  const real weight = real(step.weight), back = real(-step.momentum);
  for (int64_t i = 0; i < count; ++i) {
    const real t = widen(target[i]), s = widen(source[i]);
    narrow(from_target ? t + weight * (s - t) : s + back * (s - t), target[i]);
  }
}

template <class T, class S>
static void ema_pair(const Chunk<2>& chunk, EmaStep step) {
  auto* target = reinterpret_cast<T*>(chunk.data[0]);
  const auto* source = reinterpret_cast<const S*>(chunk.data[1]);
  if (step.weight == 1)  // whatever the target was
    for (int64_t i = 0; i < chunk.count; ++i) narrow(widen(source[i]), target[i]);
  else if (step.weight < 0.5)
    ema_lerp<true>(target, source, chunk.count, step);
  else
    ema_lerp<false>(target, source, chunk.count, step);
}

template <class T>
static void ema_target(const Chunk<2>& chunk, EmaStep step) {
  if (chunk.element[1] == Element::bfloat16)
    ema_pair<T, BFloat16>(chunk, step);
  else if (chunk.element[1] == Element::float16)
    ema_pair<T, Float16>(chunk, step);
  else if (chunk.element[1] == Element::float32)
    ema_pair<T, float>(chunk, step);
  else if constexpr (sizeof(real) == 8)
    ema_pair<T, double>(chunk, step);
}

static void ema_chunk(const Chunk<2>& chunk, EmaStep step) {
  if (chunk.element[0] == Element::bfloat16)
    ema_target<BFloat16>(chunk, step);
  else if (chunk.element[0] == Element::float16)
    ema_target<Float16>(chunk, step);
  else if (chunk.element[0] == Element::float32)
    ema_target<float>(chunk, step);
  else if constexpr (sizeof(real) == 8)
    ema_target<double>(chunk, step);
}
