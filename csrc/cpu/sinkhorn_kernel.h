// A pass of Sinkhorn. A row of 2^(x − u' − v), u' its potential before, stays in cache: its sum
// gives u, and divided by that it is added to the sums of the columns. No power is above one; rows
// and columns of very small ones only are done again, relative to their largest.

constexpr float kForbidden = -__builtin_inff();
constexpr float kUnderflow = -127;  // 2^t counts as 0 from here on
constexpr double kWeak = 0x1p-30;   // sums below this have lost digits
constexpr int64_t kSinkhornRows = 64;
constexpr int64_t kSinkhornPanel = 512;
constexpr int64_t kStreamed = 1 << 22;  // entries of a plan that no cache would keep
constexpr int kTogether = FASTSSL_WIDTH == 16 ? 4 : 2;  // rows that share loads of v and of sums
constexpr int kStacked = 2 * kTogether;  // … and of anchors

// Whether a product and a sum are rounded once; elsewhere differences are taken in double.
#if FASTSSL_WIDTH > 4 || defined(__aarch64__)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif

typedef uint16_t vh __attribute__((vector_size(2 * W), aligned(2), may_alias));
typedef double vd_unaligned __attribute__((vector_size(8 * W), aligned(8), may_alias));

FASTSSL_INLINE vf load_as_float(const float* p) { return load(p); }
FASTSSL_INLINE vf load_as_float(const BFloat16* p) {
  return (vf)(__builtin_convertvector(*reinterpret_cast<const vh*>(p), vi) << 16);
}
FASTSSL_INLINE vf load_as_float(const Float16* p) {
  const vi bits = __builtin_convertvector(*reinterpret_cast<const vh*>(p), vi);
  const vi sign = (bits & 0x8000) << 16, rest = (bits & 0x7fff) << 13;
  const vf scaled = (vf)rest * 0x1p112f;
  return (vf)((rest < 0x0f800000 ? (vi)scaled : rest | 0x7f800000) | sign);
}

// W elements, `past` in place of those past the end.
template <class T>
FASTSSL_INLINE vf load_part(const T* p, int64_t left, float past) {
  if (__builtin_expect(left >= W, 1)) return load_as_float(p);
  vf v = splat(past);
  for (int64_t l = 0; l < left; ++l) v[l] = widen(p[l]);
  return v;
}

FASTSSL_INLINE void store_part(float* p, vf v, int64_t left) {
  if (__builtin_expect(left >= W, 1)) return store(p, v);
  for (int64_t l = 0; l < left; ++l) p[l] = v[l];
}

FASTSSL_INLINE vd load_doubles(const double* p) { return *reinterpret_cast<const vd_unaligned*>(p); }
FASTSSL_INLINE void store_doubles(double* p, vd v) { *reinterpret_cast<vd_unaligned*>(p) = v; }
FASTSSL_INLINE vd widened(vf v) { return __builtin_convertvector(v, vd); }
FASTSSL_INLINE vf narrowed(vd v) { return __builtin_convertvector(v, vf); }

// 2^f for f in [-1/2, 1/2], relative error below 2e-7
constexpr float kPower[] = {1.327647196092721e-3f, 9.675541502653318e-3f, 5.550713275062701e-2f,
                            2.402211972075113e-1f, 6.931469670628860e-1f, 1.000000071655301f};

// 2^t for t up to 127: 0 for −inf and far below, NaN for any NaN.
FASTSSL_INLINE vf exp2_or_zero(vf t) {
  using E = Exp2<float>;
  constexpr float magic = E::magic + 127;  // the biased exponent
#if defined(__x86_64__) && FASTSSL_WIDTH == 16
  t = __builtin_ia32_maxps512_mask(splat(kUnderflow), t, t, -1, 4);
#else
  t = vmax(splat(kUnderflow), t);  // a NaN comes second
#endif
  const vf shifted = t + magic;
  const vf f = t - (shifted - magic);
  vf p = splat(kPower[0]);
  for (int n = 1; n < 6; ++n) p = p * f + kPower[n];
  return p * (vf)((vi)shifted << E::mantissa);
}

// The largest float below a positive number
FASTSSL_INLINE float float_below(double x) {
  float f = float(x);
  if (f >= x) f = __builtin_bit_cast(float, __builtin_bit_cast(int32_t, f) - 1);
  return f;
}

FASTSSL_INLINE double total_of(vd v) {
  double s = 0;
  for (int l = 0; l < W; ++l) s += v[l];
  return s;
}

static int64_t sinkhorn_scratch(const SinkhornProblem& p) { return ((kTogether + 1) * p.ld + W) * 4; }

template <class T>
class SinkhornWorker {
 public:
  explicit SinkhornWorker(SinkhornProblem& p)
      : p(p), scores_(static_cast<const T*>(p.scores)), high_(float_below(p.factor)),
        low_(float(p.factor - high_)) {
    const int64_t place = __atomic_fetch_add(&p.next_scratch, 1, __ATOMIC_RELAXED);
    powers_ = reinterpret_cast<float*>(p.scratch + place * sinkhorn_scratch(p));
    sums_ = powers_ + kTogether * p.ld;
  }

  void rows() {
    for (int64_t chunk; (chunk = take()) < p.chunks;) {
      const int64_t end = lower((chunk + 1) * p.chunk, p.rows);
      double* sums = p.sums + chunk * p.ld;
      for (int64_t k = 0; p.next && k < p.ld; ++k) sums[k] = 0;
      for (int64_t block = chunk * p.chunk; block < end; block += kSinkhornRows) {
        for (int64_t k = 0; k < p.ld; ++k) sums_[k] = 0;
        const int64_t last = lower(block + kSinkhornRows, end);
        int64_t b = block;
        for (; b + kTogether <= last; b += kTogether) some_rows<kTogether>(b);
        for (; b < last; ++b) some_rows<1>(b);
        for (int64_t k = 0; p.next && k < p.ld; k += W)
          store_doubles(sums + k, load_doubles(sums + k) + widened(load(sums_ + k)));
      }
    }
    end_streams();
  }

  void columns() {
    const int64_t panels = p.tasks / p.chunks;
    for (int64_t task; (task = take()) < p.tasks;) {
      const int64_t chunk = task / panels, panel = task % panels;
      if (!p.weak[panel]) continue;
      const int64_t first = panel * kSinkhornPanel, end = lower(first + kSinkhornPanel, p.columns);
      const int64_t begin = chunk * p.chunk, stop = lower(begin + p.chunk, p.rows);
      for (int64_t k = first; k < end; k += W) {
        store(p.anchors + chunk * p.ld + k, splat(kNothing));
        store_doubles(p.sums + chunk * p.ld + k, vd{});
      }
      for (int64_t b = begin; b < stop; b += kSinkhornRows) {
        const int64_t count = lower(kSinkhornRows, stop - b);
        if (p.u)
          block_of_columns<true>(chunk, b, count, first, end);
        else
          block_of_columns<false>(chunk, b, count, first, end);
      }
    }
  }

  int64_t take() { return __atomic_fetch_add(&p.next_task, 1, __ATOMIC_RELAXED); }

 private:
  static constexpr float kNothing = -3e38f;  // below any anchor
  static constexpr float kRoom = 16;         // powers above their anchor by this are let pass

  SinkhornProblem& p;
  const T* scores_;
  float high_, low_;  // the factor; both positive, so that −inf stays what it is
  float *powers_, *sums_;

  template <int N>
  void some_rows(int64_t b) {
    const int64_t columns = p.columns, ld = p.ld;
    double from[N], sum[N];
    float inverse[N];
    powers<N>(b, from, sum);
    for (int n = 0; n < N; ++n) {
      if (!(sum[n] > kWeak && sum[n] < 1e30)) from[n] = row_again(b + n, powers_ + n * ld, sum[n]);
      p.u[b + n] = from[n] + __builtin_log2(sum[n]);
      inverse[n] = float(1 / sum[n]);
    }
    const float* powers = powers_;
    float* sums = sums_;
    for (int64_t k = 0; p.next && k < ld; k += W) {
      vf c = load(sums + k);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) c += load(powers + n * ld + k) * inverse[n];
      store(sums + k, c);
    }
    for (int n = 0; p.plan && n < N; ++n)
      write(powers + n * ld, inverse[n], p.plan + (b + n) * columns, columns);
  }

  void write(const float* powers, float inverse, float* out, int64_t count) {
    int64_t k = 0;
    if (p.rows * p.columns >= kStreamed) {
      const int64_t ahead = lower(int64_t(-(uintptr_t(out) / 4) % W), count);
      for (; k < ahead; ++k) out[k] = powers[k] * inverse;
      for (; k + W <= count; k += W) stream(out + k, load(powers + k) * inverse);
    }
    for (; k < count; k += W) store_part(out + k, load(powers + k) * inverse, count - k);
  }

  // 2^(x − from − v) of N rows, `from` the potentials before, rounded up; and their sums.
  template <int N>
  void powers(int64_t b, double (&from)[N], double (&sum)[N]) {
    constexpr int64_t run = 64 * W;  // added up in floats
    const int64_t columns = p.columns, ld = p.ld, whole = columns / W * W;
    const T* scores = scores_ + b * columns;
    const float *v_high = p.v_high, *v_low = p.v_low;
    const double *v = p.v, factor = p.factor;
    const vf high = splat(high_), low = splat(low_);
    float* out = powers_;
    vf anchor[N];
    vd sums[N] = {};
    for (int n = 0; n < N; ++n) {
      from[n] = __builtin_ceil(p.before[b + n] / p.grid) * p.grid;
      anchor[n] = splat(float(from[n]));
    }
    const auto power = [&](int n, int64_t k, vf s) __attribute__((always_inline)) {
      vf t;
      if constexpr (kFused)
        t = s * low + (s * high - (load(v_high + k) + anchor[n])) - load(v_low + k);
      else
        t = narrowed(widened(s) * factor - load_doubles(v + k) - from[n]);
      const vf e = exp2_or_zero(t);
      store(out + n * ld + k, e);
      return e;
    };
    for (int64_t first = 0; first < whole; first += run) {
      vf part[N] = {};
      const int64_t end = lower(first + run, whole);
      for (int64_t k = first; k < end; k += W) {
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) part[n] += power(n, k, load_as_float(scores + n * columns + k));
      }
      for (int n = 0; n < N; ++n) sums[n] += widened(part[n]);
    }
    for (int n = 0; n < N; ++n) {
      if (whole < columns)
        sums[n] += widened(power(
            n, whole, load_part(scores + n * columns + whole, columns - whole, kForbidden)));
      sum[n] = total_of(sums[n]);
    }
  }

  // A row's powers relative to its largest, in double up to there; what that is.
  double row_again(int64_t b, float* powers, double& sum) {
    const T* scores = scores_ + b * p.columns;
    vd largest = vd{} - __builtin_inf();
    for (int64_t k = 0; k < p.columns; k += W) {
      const vf s = load_part(scores + k, p.columns - k, kForbidden);
      const vd x = widened(s) * p.factor - load_doubles(p.v + k);
      largest = largest > x ? largest : x;
    }
    double from = largest[0];
    for (int l = 1; l < W; ++l) from = from > largest[l] ? from : largest[l];
    vd sums{};
    for (int64_t k = 0; k < p.columns; k += W) {
      const vf s = load_part(scores + k, p.columns - k, kForbidden);
      const vd x = widened(s) * p.factor - load_doubles(p.v + k);
      const vf e = exp2_or_zero(narrowed(x - from));
      store(powers + k, e);
      sums += widened(e);
    }
    sum = total_of(sums);
    return from;
  }

  // Some rows' powers in some columns, relative to anchors that rise where they must.
  template <bool kShifted>
  void block_of_columns(int64_t chunk, int64_t b, int64_t count, int64_t first, int64_t end) {
    float* anchors = p.anchors + chunk * p.ld;
    double* totals = p.sums + chunk * p.ld;
    float* sums = sums_;
    for (int64_t k = first; k < end; k += W) store(sums + k, vf{});
    int64_t i = 0;
    for (; i + kStacked <= count; i += kStacked)
      rows_of_columns<kShifted, kStacked>(b + i, first, end, anchors, totals);
    for (; i < count; ++i) rows_of_columns<kShifted, 1>(b + i, first, end, anchors, totals);
    for (int64_t k = first; k < end; k += W)
      store_doubles(totals + k, load_doubles(totals + k) + widened(load(sums + k)));
  }

  template <bool kShifted, int N>
  void rows_of_columns(int64_t b, int64_t first, int64_t end, float* anchors, double* totals) {
    const int64_t columns = p.columns;
    const T* scores = scores_ + b * columns;
    const double* u = kShifted ? p.u + b : nullptr;
    const double factor = p.factor;
    const vf high = splat(high_), low = splat(low_);
    float* sums = sums_;
    const auto vector = [&](int64_t k, auto read) __attribute__((always_inline)) {
      vf s[N], largest = splat(kNothing), anchor = load(anchors + k), sum = load(sums + k);
      vd x[kShifted ? N : 1];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        s[n] = read(scores + n * columns + k);
        if constexpr (kShifted) x[n] = widened(s[n]) * factor - u[n];
        largest = vmax(largest, kShifted ? narrowed(x[n]) : s[n]);
      }
      // Of the scores themselves, since a product that is there already would not be fused below.
      if constexpr (!kShifted) largest *= high;
      if (__builtin_expect(lane_bits(largest > anchor + kRoom) != 0, 0)) {
        const vf raised = vmax(anchor, largest), shrink = exp2_or_zero(anchor - raised);
        sum *= shrink;
        store_doubles(totals + k, load_doubles(totals + k) * widened(shrink));
        store(anchors + k, raised);
        anchor = raised;
      }
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        if constexpr (kShifted)
          sum += exp2_or_zero(narrowed(x[n] - widened(anchor)));
        else if constexpr (kFused)
          sum += exp2_or_zero(s[n] * low + (s[n] * high - anchor));
        else
          sum += exp2_or_zero(narrowed(widened(s[n]) * factor - widened(anchor)));
      }
      store(sums + k, sum);
    };
    const int64_t whole = lower(end, columns / W * W);
    for (int64_t k = first; k < whole; k += W)
      vector(k, [](const T* at) __attribute__((always_inline)) { return load_as_float(at); });
    if (whole < end)
      vector(whole, [=](const T* at) { return load_part(at, end - whole, kForbidden); });
  }
};

// A worker for the elements that a problem's scores are.
template <template <class> class Worker, class Problem, class Act>
static void with_sinkhorn_worker(void* problem, Act act) {
  auto& p = *static_cast<Problem*>(problem);
  if (p.element == Element::float32)
    act(Worker<float>(p));
  else if (p.element == Element::bfloat16)
    act(Worker<BFloat16>(p));
  else
    act(Worker<Float16>(p));
}

static void sinkhorn_rows(void* problem) {
  with_sinkhorn_worker<SinkhornWorker, SinkhornProblem>(
      problem, [](auto worker) { worker.rows(); });
}
static void sinkhorn_columns(void* problem) {
  with_sinkhorn_worker<SinkhornWorker, SinkhornProblem>(
      problem, [](auto worker) { worker.columns(); });
}

// Adds up the chunks' sums, always in one order.
template <bool kAnchored>
static void sinkhorn_finish(void* problem) {
  auto& p = *static_cast<SinkhornProblem*>(problem);
  for (int64_t panel; (panel = __atomic_fetch_add(&p.next_task, 1, __ATOMIC_RELAXED)) < p.tasks;) {
    if (kAnchored && !p.weak[panel]) continue;
    const int64_t first = panel * kSinkhornPanel, end = lower(first + kSinkhornPanel, p.columns);
    bool weak = false;
    for (int64_t k = first; k < end; k += W) {
      vd total{};
      vf top = splat(-3e38f);
      for (int64_t c = 0; kAnchored && c < p.chunks; ++c)
        top = vmax(top, load(p.anchors + c * p.ld + k));
      for (int64_t c = 0; c < p.chunks; ++c) {
        vd sum = load_doubles(p.sums + c * p.ld + k);
        if (kAnchored) sum *= widened(exp2_or_zero(load(p.anchors + c * p.ld + k) - top));
        total += sum;
      }
      const vd from = kAnchored ? widened(top) : load_doubles(p.v + k);
      for (int64_t l = 0; l < lower(W, end - k); ++l) {
        weak = weak || !(total[l] > kWeak);
        p.next[k + l] = from[l] + __builtin_log2(total[l]);
      }
    }
    if (!kAnchored) p.weak[panel] = weak;
  }
}
