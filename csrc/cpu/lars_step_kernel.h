// A stretch of a parameter's step. Elements of any type pass through reals, a block at a time that
// stays in the L1 cache; those that are reals already, where they are.

constexpr int64_t kLarsBlock = 1024;

struct LarsBlock {
  real* data = nullptr;  // where the elements are, or the buffer
  real buffer[kLarsBlock];

  void read(const LarsChunk& chunk, int which, int64_t begin, int64_t count) {
    if (chunk.element[which] == Element::float32)
      widen_all(reinterpret_cast<float*>(chunk.data[which]) + begin, count);
    else if (chunk.element[which] == Element::bfloat16)
      widen_all(reinterpret_cast<BFloat16*>(chunk.data[which]) + begin, count);
    else if (chunk.element[which] == Element::float16)
      widen_all(reinterpret_cast<Float16*>(chunk.data[which]) + begin, count);
    else if constexpr (sizeof(real) == 8)
      widen_all(reinterpret_cast<double*>(chunk.data[which]) + begin, count);
  }

  void write(const LarsChunk& chunk, int which, int64_t begin, int64_t count) const {
    if (data != buffer) return;
    if (chunk.element[which] == Element::float32)
      narrow_all(reinterpret_cast<float*>(chunk.data[which]) + begin, count);
    else if (chunk.element[which] == Element::bfloat16)
      narrow_all(reinterpret_cast<BFloat16*>(chunk.data[which]) + begin, count);
    else if (chunk.element[which] == Element::float16)
      narrow_all(reinterpret_cast<Float16*>(chunk.data[which]) + begin, count);
  }

 private:
  void widen_all(real* in, int64_t) { data = in; }
  template <class T>
  void widen_all(T* __restrict in, int64_t count) {
    for (int64_t i = 0; i < count; ++i) buffer[i] = widen(in[i]);
    data = buffer;
  }
  template <class T>
  void narrow_all(T* __restrict out, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) narrow(buffer[i], out[i]);
  }
};

// Squares summed in double, whatever the size of the numbers.
static void lars_exact_squares(const real* w, const real* g, const real* v, int64_t count,
                               const LarsChange& c, double* squares) {
  for (int64_t i = 0; i < count; ++i) {
    const double x = w[i], d = c.grad * g[i] + c.param * x + (v ? c.velocity * v[i] : 0);
    squares[0] += x * x;
    squares[1] += d * d;
  }
}

// The same by vectors of reals, some tens of terms to a sum: two more digits than the ratio needs.
template <bool with_velocity>
static void lars_squares(const real* w, const real* g, const real* v, int64_t count,
                         const LarsChange& c, double* squares) {
  const real param = real(c.param), grad = real(c.grad), velocity = real(c.velocity);
  vf sizes[4] = {}, lengths[4] = {};
  int64_t i = 0;
  for (; i + 4 * W <= count; i += 4 * W)
    for (int k = 0; k < 4; ++k) {
      const vf x = load(w + i + k * W);
      vf d = grad * load(g + i + k * W) + param * x;
      if constexpr (with_velocity) d += velocity * load(v + i + k * W);
      sizes[k] += x * x;
      lengths[k] += d * d;
    }
  const double size = sum((sizes[0] + sizes[1]) + (sizes[2] + sizes[3]));
  const double length = sum((lengths[0] + lengths[1]) + (lengths[2] + lengths[3]));
  const double least = sizeof(real) == 4 ? 1e-28 : 1e-290, most = 1 / least;
  if (!(size > least && size < most && length > least && length < most)) i = 0;  // may be off
  squares[0] += i ? size : 0;
  squares[1] += i ? length : 0;
  lars_exact_squares(w + i, g + i, with_velocity ? v + i : nullptr, count - i, c, squares);
}

static void lars_norms(const LarsChunk& chunk, const LarsChange& c, double* squares) {
  LarsBlock params, grads, velocities;
  squares[0] = squares[1] = 0;
  for (int64_t begin = 0; begin < chunk.count; begin += kLarsBlock) {
    const int64_t count = lower(kLarsBlock, chunk.count - begin);
    params.read(chunk, 0, begin, count);
    grads.read(chunk, 1, begin, count);
    if (c.velocity) velocities.read(chunk, 2, begin, count);
    (c.velocity ? lars_squares<true> : lars_squares<false>)(params.data, grads.data,
                                                            velocities.data, count, c, squares);
  }
}

template <bool nesterov>
static void lars_move(real* __restrict param, const real* __restrict grad, real* __restrict velocity,
                      int64_t count, const LarsUpdate& u) {
  const real decay = real(u.weight_decay), momentum = real(u.momentum);
  const real gain = real(u.gain), rate = real(u.rate);
  for (int64_t i = 0; i < count; ++i) {
    const real step = gain * (grad[i] + decay * param[i]);
    const real v = momentum * velocity[i] + step;
    velocity[i] = v;
    param[i] -= rate * (nesterov ? momentum * v + step : v);
  }
}

static void lars_update(const LarsChunk& chunk, const LarsUpdate& u) {
  LarsBlock params, grads, velocities;
  const int64_t size = chunk.element[0] == Element::float64   ? 8
                       : chunk.element[0] == Element::float32 ? 4
                                                              : 2;
  for (int64_t begin = 0; begin < chunk.count; begin += kLarsBlock) {
    const int64_t count = lower(kLarsBlock, chunk.count - begin);
    params.read(chunk, 0, begin, count);
    grads.read(chunk, 1, begin, count);
    velocities.read(chunk, 2, begin, count);
    if (u.nesterov)
      lars_move<true>(params.data, grads.data, velocities.data, count, u);
    else
      lars_move<false>(params.data, grads.data, velocities.data, count, u);
    params.write(chunk, 0, begin, count);
    velocities.write(chunk, 2, begin, count);
    if (chunk.data[3] == chunk.data[0]) continue;
    const int64_t wide = chunk.element[3] == Element::float64   ? 8
                         : chunk.element[3] == Element::float32 ? 4
                                                                : 2;
    ema_chunk({{chunk.data[3] + begin * wide, chunk.data[0] + begin * size},
               {chunk.element[3], chunk.element[0]},
               count,
               chunk.tensor},
              u.average);
  }
}
