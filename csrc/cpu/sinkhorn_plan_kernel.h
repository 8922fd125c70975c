// The whole of Sinkhorn where the powers 2^x are floats themselves: they are written once, into the
// plan's memory, and an iteration is products of them with factors of the columns and of the rows.
// One exponential an entry in all, and no logarithm. All terms are positive, so that sums keep their
// digits; only the range of the factors could fail, and is watched.

constexpr float kPlanWidest = 31;  // of |x|; cosines at a temperature of 1/20 reach 29
constexpr double kPlanLeast = 0x1p-80, kPlanMost = 0x1p80;  // of sums

FASTSSL_INLINE void fail(SinkhornPlanProblem& p) {
  __atomic_store_n(&p.failed, true, __ATOMIC_RELAXED);
}

FASTSSL_INLINE double checked(SinkhornPlanProblem& p, double sum) {
  if (!(sum > kPlanLeast && sum < kPlanMost)) fail(p);
  return sum;
}

template <class T>
class SinkhornPlanWorker {
 public:
  explicit SinkhornPlanWorker(SinkhornPlanProblem& p)
      : p(p), high_(float_below(p.factor)), low_(float(p.factor - high_)) {
    const int64_t place = __atomic_fetch_add(&p.next_scratch, 1, __ATOMIC_RELAXED);
    sums_ = reinterpret_cast<float*>(p.scratch) + place * p.ld;
  }

  // 2^x, and its sums by columns
  void powers() {
    vf widest{};
    each_chunk<true>([&](int64_t b, auto together) __attribute__((always_inline)) {
      constexpr int N = decltype(together)::value;
      const T* scores = static_cast<const T*>(p.scores) + b * p.columns;
      float* powers = p.plan + b * p.columns;
      each_vector([&](int64_t k, int64_t left) __attribute__((always_inline)) {
        vf c = load(sums_ + k);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          const vf s = load_part(scores + n * p.columns + k, left, 0);
          widest = vmax(widest, (vf)((vi)s & 0x7fffffff));
          const vf e = power(s);
          store_part(powers + n * p.columns + k, e, left);
          c += e;
        }
        store(sums_ + k, c);
      });
    });
    if (!(highest(widest) * p.factor <= kPlanWidest)) fail(p);
  }

  // The rows' factors, and the sums by columns after them
  void rows() {
    each_chunk<true>([&](int64_t b, auto together) __attribute__((always_inline)) {
      constexpr int N = decltype(together)::value;
      float inverse[N];
      factors<N>(b, inverse);
      const float* powers = p.plan + b * p.columns;
      each_vector([&](int64_t k, int64_t left) __attribute__((always_inline)) {
        vf c = load(sums_ + k);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) c += load_part(powers + n * p.columns + k, left, 0) * inverse[n];
        store(sums_ + k, c);
      });
    });
  }

  // The plan, in place of the powers
  void plan() {
    each_chunk<false>([&](int64_t b, auto together) __attribute__((always_inline)) {
      constexpr int N = decltype(together)::value;
      float inverse[N];
      factors<N>(b, inverse);
      float* plan = p.plan + b * p.columns;
      each_vector([&](int64_t k, int64_t left) __attribute__((always_inline)) {
        const vf factor = load(p.factors + k);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          float* at = plan + n * p.columns + k;
          store_part(at, load_part(at, left, 0) * factor * inverse[n], left);
        }
      });
    });
  }

 private:
  SinkhornPlanProblem& p;
  const float high_, low_;  // the factor
  float* sums_;             // by columns, of a block of rows

  template <int N>
  struct Together {
    static constexpr int value = N;
  };

  template <class Act>
  __attribute__((always_inline)) void each_vector(Act act) {
    const int64_t whole = p.columns / W * W;
    for (int64_t k = 0; k < whole; k += W) act(k, int64_t(W));
    if (whole < p.columns) act(whole, p.columns - whole);
  }

  // Some rows at a time; what they add to sums_ goes to their chunk's sums by columns.
  template <bool kSums, class Act>
  __attribute__((always_inline)) void each_chunk(Act act) {
    for (int64_t task; (task = __atomic_fetch_add(&p.next_task, 1, __ATOMIC_RELAXED)) < p.chunks;) {
      const int64_t chunk = p.backwards ? p.chunks - 1 - task : task;
      const int64_t end = lower((chunk + 1) * p.chunk, p.rows);
      double* sums = p.sums + chunk * p.ld;
      for (int64_t k = 0; kSums && k < p.ld; ++k) sums[k] = 0;
      for (int64_t block = chunk * p.chunk; block < end; block += kSinkhornRows) {
        for (int64_t k = 0; kSums && k < p.ld; ++k) sums_[k] = 0;
        const int64_t stop = lower(block + kSinkhornRows, end);
        int64_t b = block;
        for (; b + kTogether <= stop; b += kTogether) act(b, Together<kTogether>());
        for (; b < stop; ++b) act(b, Together<1>());
        for (int64_t k = 0; kSums && k < p.ld; k += W)
          store_doubles(sums + k, load_doubles(sums + k) + widened(load(sums_ + k)));
      }
    }
  }

  // 2^(s · factor) within ±31; NaN where s is not finite
  __attribute__((always_inline)) vf power(vf s) const {
    using E = Exp2<float>;
    constexpr float magic = E::magic + 127;  // the biased exponent
    vf shifted, f;
    if constexpr (kFused) {
      shifted = s * high_ + magic;
      f = s * low_ + (s * high_ - (shifted - magic));
    } else {
      const vd t = widened(s) * p.factor;
      shifted = narrowed(t) + magic;
      f = narrowed(t - widened(shifted - magic));
    }
    vf e = splat(kPower[0]);
    for (int n = 1; n < 6; ++n) e = e * f + kPower[n];
    return e * (vf)((vi)shifted << E::mantissa);
  }

  // Of N rows, the reciprocals of the sums of powers times the columns' factors.
  template <int N>
  __attribute__((always_inline)) void factors(int64_t b, float (&inverse)[N]) {
    constexpr int64_t run = 64 * W;  // added up in floats
    const float* powers = p.plan + b * p.columns;
    vd sums[N] = {};
    for (int64_t first = 0; first < p.columns; first += run) {
      vf part[N] = {};
      const int64_t end = lower(first + run, p.columns);
      for (int64_t k = first; k < end; k += W) {
        const vf factor = load(p.factors + k);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n)
          part[n] += load_part(powers + n * p.columns + k, p.columns - k, 0) * factor;
      }
      for (int n = 0; n < N; ++n) sums[n] += widened(part[n]);
    }
    for (int n = 0; n < N; ++n) {
      inverse[n] = float(1 / checked(p, total_of(sums[n])));
    }
  }
};

static void sinkhorn_plan_powers(void* problem) {
  with_sinkhorn_worker<SinkhornPlanWorker, SinkhornPlanProblem>(
      problem, [](auto worker) { worker.powers(); });
}
static void sinkhorn_plan_rows(void* problem) {
  with_sinkhorn_worker<SinkhornPlanWorker, SinkhornPlanProblem>(
      problem, [](auto worker) { worker.rows(); });
}
static void sinkhorn_plan_last(void* problem) {
  with_sinkhorn_worker<SinkhornPlanWorker, SinkhornPlanProblem>(
      problem, [](auto worker) { worker.plan(); });
}

// A panel of columns: their factors, from the chunks' sums in one order.
static void sinkhorn_plan_factors(void* problem) {
  auto& p = *static_cast<SinkhornPlanProblem*>(problem);
  for (int64_t panel; (panel = __atomic_fetch_add(&p.next_task, 1, __ATOMIC_RELAXED)) < p.tasks;) {
    const int64_t first = panel * kSinkhornPanel, end = lower(first + kSinkhornPanel, p.columns);
    for (int64_t k = first; k < end; k += W) {
      vd total{};
      for (int64_t c = 0; c < p.chunks; ++c) total += load_doubles(p.sums + c * p.ld + k);
      vf factor{};  // zero past the end
      for (int64_t l = 0; l < lower(W, end - k); ++l) factor[l] = float(1 / checked(p, total[l]));
      store(p.factors + k, factor);
    }
  }
}
