// Cross entropies of one sample's crops and views, chunk by chunk of prototypes: every logit comes
// from memory once, its chunk's largest is found, and what is left to do finds it in the cache.
//
// With gap_k = max s − s_k no term is negative and nothing cancels, however wide the logits:
//     −Σ_k q_k log p_k = log Σ_k exp(−gap_k / τ_s) + Σ_k q_k gap_k / τ_s

// Vectors to and from narrower elements, as narrow.h has it for single ones.

typedef uint16_t vh __attribute__((vector_size(2 * W)));
typedef uint16_t vh_unaligned __attribute__((vector_size(2 * W), aligned(2), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * W)));

FASTSSL_INLINE vf load_wide(const float* p) { return load(p); }
FASTSSL_INLINE vu load_bits(const void* p) {
  return __builtin_convertvector((vh) * static_cast<const vh_unaligned*>(p), vu);
}
FASTSSL_INLINE vf load_wide(const BFloat16* p) { return (vf)(load_bits(p) << 16); }
FASTSSL_INLINE vf load_wide(const Float16* p) {
  const vu bits = load_bits(p), sign = (bits & 0x8000) << 16, rest = (bits & 0x7fff) << 13;
  const vu finite = (vu)(rest < 0x0f800000);
  const vu scaled = (vu)((vf)rest * 0x1p112f);  // the exponents' biases differ
  return (vf)(sign | (scaled & finite) | ((rest | 0x7f800000) & ~finite));
}

FASTSSL_INLINE void store_bits(void* p, vu bits) {
  *static_cast<vh_unaligned*>(p) = __builtin_convertvector(bits, vh);
}
FASTSSL_INLINE void store_narrow(float* p, vf v) { store(p, v); }
FASTSSL_INLINE void store_narrow(BFloat16* p, vf v) {
  const vu bits = (vu)v, even = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, nan = (vu)(v != v);
  store_bits(p, (even & ~nan) | (nan & 0x7fc0));
}
FASTSSL_INLINE void store_narrow(Float16* p, vf v) {
  const vu bits = (vu)v, sign = bits >> 16 & 0x8000, nan = (vu)(v != v);
  const vf size = (vf)(bits & 0x7fffffff);
  // Added to a power of two 13 above its own, a number keeps the bits that a half has for it.
  const vu least = vu{} + 0x38800000, own = bits & 0x7f800000, power = own > least ? own : least;
  const vu sum = (vu)(size + (vf)(power + 0x06800000));
  const vu half = (sum & 0xfff) + ((power - least) >> 13), finite = (vu)(size < 65520.f);
  store_bits(p, sign | (((half & finite) | (0x7c00 & ~finite)) & ~nan) | (nan & 0x7e00));
}

// The first n of a vector; the other lanes repeat the first.
template <class T>
FASTSSL_INLINE vf load_some(const T* p, int64_t n) {
  if (n == W) return load_wide(p);
  T some[W];
  for (int l = 0; l < W; ++l) some[l] = p[l < n ? l : 0];
  return load_wide(some);
}
template <class T>
FASTSSL_INLINE void store_some(T* p, vf v, int64_t n) {
  if (n == W) return store_narrow(p, v);
  T some[W];
  store_narrow(some, v);
  for (int l = 0; l < n; ++l) p[l] = some[l];
}
// Zero beyond the first n.
FASTSSL_INLINE vf only(vf v, int64_t n) {
  return n == W ? v : (vf)((vi)v & (lanes() < vi{} + int32_t(n)));
}

// 2^t of what is hardly above 0; NaN stays.
FASTSSL_INLINE vf exp2_below(vf t) {
  return exp2(t < Exp2<real>::lowest ? splat(Exp2<real>::lowest) : t);
}

// A chunk of one row, less a centre if there is one: of float32 numbers the exact difference, in two.
template <class T>
struct PrototypeChunk {
  const T* logits;
  const float *center, *low;

  FASTSSL_MEMBER vf high(int64_t k, int64_t n) const {
    const vf x = load_some(logits + k, n);
    return center ? x - load_some(center + k, n) : x;
  }
  FASTSSL_MEMBER vf above(float highest, int64_t k, int64_t n) const {
    const vf a = load_some(logits + k, n);
    if (!center) return a - highest;
    const vf b = load_some(center + k, n), difference = a - b, part = difference - a;
    vf rest = (a - (difference - part)) - (b + part);
    if (low) rest -= load_some(low + k, n);
    return (difference - highest) + rest;
  }
};

template <class T>
class PrototypeWorker {
 public:
  static int64_t scratch(const PrototypeProblem& p) { return PrototypeWorker(p, nullptr).used_; }

  template <bool BACKWARD>
  static void work(PrototypeProblem& p) {
    const int64_t place = __atomic_fetch_add(&p.next_scratch, 1, __ATOMIC_RELAXED);
    PrototypeWorker worker(p, p.scratch + place * scratch(p));
    for (;;) {
      const int64_t row = __atomic_fetch_add(&p.next_row, 1, __ATOMIC_RELAXED);
      if (row >= p.rows) return;
      BACKWARD ? worker.backward(row) : worker.forward(row);
    }
  }

 private:
  static constexpr int64_t kChunk = 1024;   // prototypes
  static constexpr int64_t kStep = 4 * W;  // of a product's loop
  static constexpr double kLog2E = 1.4426950408889634;
  static constexpr float kInfinity = __builtin_inff();

  struct Sums {
    double highest;  // logit
    double sum;      // of exp((logit - highest) / temperature)
    double before;   // the same without the present chunk
  };

  const PrototypeProblem& p;
  const float student_scale2_, teacher_scale2_;  // for powers of two
  int64_t used_ = 0;
  Sums *students_, *teachers_;     // [S], [T]
  double* crossing_;               // [S, T] Σ_k power_tk · gap_sk
  float *powers_, *gaps_;          // [T, kChunk] of the teachers, [kChunk] of a student

  PrototypeWorker(const PrototypeProblem& p, char* scratch)
      : p(p), student_scale2_(float(p.student_scale * kLog2E)),
        teacher_scale2_(float(p.teacher_scale * kLog2E)) {
    take(students_, scratch, p.students);
    take(teachers_, scratch, p.teachers);
    take(crossing_, scratch, p.students * p.teachers);
    take(powers_, scratch, p.teachers * kChunk);
    take(gaps_, scratch, kChunk);
  }

  template <class Part>
  void take(Part*& part, char* scratch, int64_t count) {
    part = reinterpret_cast<Part*>(uintptr_t(scratch) + uintptr_t(used_));
    used_ += round_up(count * int64_t(sizeof(Part)), 64);
  }

  PrototypeChunk<T> student(int64_t s, int64_t row, int64_t first) const {
    return {static_cast<const T*>(p.student[s]) + row * p.k + first, nullptr, nullptr};
  }
  PrototypeChunk<T> teacher(int64_t t, int64_t row, int64_t first) const {
    const int64_t at = t * p.center_step + first;
    return {static_cast<const T*>(p.teacher[t]) + row * p.k + first,
            p.center ? p.center + at : nullptr, p.center_low ? p.center_low + at : nullptr};
  }
  double* stats(int64_t i, int64_t row) const { return p.stats + (i * p.rows + row) * 2; }
  int64_t met_by(int64_t s) const {
    int64_t met = 0;
    for (int64_t t = 0; t < p.teachers; ++t) met += p.own[t] != s;
    return met;
  }

  void forward(int64_t row) {
    for (int64_t i = 0; i < p.students * p.teachers; ++i) crossing_[i] = 0;
    for (int64_t first = 0; first < p.k; first += kChunk) {
      const int64_t count = lower(kChunk, p.k - first);
      for (int64_t t = 0; t < p.teachers; ++t)
        add_teacher(t, teacher(t, row, first), first == 0, count);
      for (int64_t s = 0; s < p.students; ++s)
        add_student(s, student(s, row, first), first == 0, count);
    }
    for (int64_t t = 0; t < p.teachers; ++t) keep(teachers_[t], stats(p.students + t, row));
    double loss = 0;
    for (int64_t s = 0; s < p.students; ++s) {
      keep(students_[s], stats(s, row));
      if (met_by(s) > 0) loss += double(met_by(s)) * __builtin_log(students_[s].sum);
      for (int64_t t = 0; t < p.teachers; ++t)
        if (p.own[t] != s)
          loss += p.student_scale * crossing_[s * p.teachers + t] / teachers_[t].sum;
    }
    p.loss[row] = loss;
  }

  // A row of nothing but −inf is no distribution.
  static void keep(Sums& sums, double* stats) {
    if (sums.highest == -kInfinity) sums.sum = __builtin_nan("");
    stats[0] = sums.highest, stats[1] = sums.sum;
  }

  static float highest_of(const PrototypeChunk<T>& chunk, int64_t count) {
    vf high[2] = {chunk.high(0, lower(W, count)), chunk.high(0, lower(W, count))};
    int64_t k = 0;
    for (; k + 2 * W <= count; k += 2 * W) {
      high[0] = vmax(high[0], chunk.high(k, W));
      high[1] = vmax(high[1], chunk.high(k + W, W));
    }
    for (; k < count; k += W) high[0] = vmax(high[0], chunk.high(k, lower(W, count - k)));
    return highest(vmax(high[0], high[1]));
  }

  // What to measure from; where so far all is −inf, anything.
  static float finite(double highest) { return highest == -kInfinity ? 0 : float(highest); }

  // Takes the chunk's largest logit in; what a sum so far is to be multiplied with.
  static double raise(Sums& sums, float highest, bool first, double scale) {
    if (first) {
      sums = {highest, 0, 0};
      return 1;
    }
    sums.before = sums.sum;
    if (highest <= sums.highest) return 1;
    const double factor = __builtin_exp((sums.highest - highest) * scale);
    sums = {highest, sums.sum * factor, sums.sum * factor};
    return factor;
  }

  void add_teacher(int64_t t, PrototypeChunk<T> chunk, bool first, int64_t count) {
    Sums& sums = teachers_[t];
    const double factor = raise(sums, highest_of(chunk, count), first, p.teacher_scale);
    if (factor != 1)
      for (int64_t s = 0; s < p.students; ++s) crossing_[s * p.teachers + t] *= factor;
    sums.sum += powers(chunk, finite(sums.highest), 1, count, powers_ + t * kChunk);
  }

  void add_student(int64_t s, PrototypeChunk<T> chunk, bool first, int64_t count) {
    Sums& sums = students_[s];
    double* crossing = crossing_ + s * p.teachers;
    const double before = sums.highest;
    raise(sums, highest_of(chunk, count), first, p.student_scale);
    if (!first && sums.highest != before)
      for (int64_t t = 0; t < p.teachers; ++t)
        crossing[t] += (sums.highest - before) * teachers_[t].before;
    sums.sum += gaps(chunk, finite(sums.highest), count);
    for (int64_t t = 0; t < p.teachers; ++t)
      if (p.own[t] != s) crossing[t] += product(powers_ + t * kChunk, gaps_, count);
  }

  // factor · exp((logit − highest) / teacher temperature) of a chunk, and its sum
  double powers(const PrototypeChunk<T>& chunk, float highest, float factor, int64_t count,
                float* out) const {
    vf total{};
    int64_t k = 0;
    for (; k + W <= count; k += W) {
      const vf power = exp2_below(chunk.above(highest, k, W) * teacher_scale2_) * factor;
      store(out + k, power);
      total += power;
    }
    for (; k < round_up(count, kStep); k += W) {
      vf power{};
      if (k < count) {
        const vf some = chunk.above(highest, k, count - k);
        power = only(exp2_below(some * teacher_scale2_) * factor, count - k);
      }
      store(out + k, power);
      total += power;
    }
    return sum(total);
  }

  // highest − logit of a chunk, and Σ exp(−gap / student temperature)
  double gaps(const PrototypeChunk<T>& chunk, float highest, int64_t count) const {
    vf total{};
    int64_t k = 0;
    for (; k + W <= count; k += W) {
      const vf gap = -chunk.above(highest, k, W);
      store(gaps_ + k, gap);
      total += exp2_below(gap * -student_scale2_);
    }
    for (; k < round_up(count, kStep); k += W) {
      vf gap{};
      if (k < count) {
        gap = -chunk.above(highest, k, count - k);
        total += only(exp2_below(gap * -student_scale2_), count - k);
      }
      store(gaps_ + k, gap);
    }
    return sum(total);
  }

  static double product(const float* a, const float* b, int64_t count) {
    vf total[4] = {};
    for (int64_t k = 0; k < count; k += kStep)
      for (int j = 0; j < 4; ++j) total[j] += load(a + k + j * W) * load(b + k + j * W);
    return sum((total[0] + total[1]) + (total[2] + total[3]));
  }

  // d/ds_k = (met · p_k − Σ_t q_tk) · d_loss / τ_s
  void backward(int64_t row) {
    const double upstream = p.d_loss[row] * p.student_scale;
    for (int64_t first = 0; first < p.k; first += kChunk) {
      const int64_t count = lower(kChunk, p.k - first);
      for (int64_t t = 0; t < p.teachers; ++t) {
        const double* kept = stats(p.students + t, row);
        powers(teacher(t, row, first), float(kept[0]), float(upstream / kept[1]), count,
               powers_ + t * kChunk);
      }
      for (int64_t s = 0; s < p.students; ++s) {
        const double* kept = stats(s, row);
        T* out = static_cast<T*>(p.gradient) + (s * p.rows + row) * p.k + first;
        write(student(s, row, first), float(kept[0]),
              float(upstream * double(met_by(s)) / kept[1]), targets(s, count), count, out);
      }
    }
  }

  // The sum of the teachers' powers that student s meets.
  const float* targets(int64_t s, int64_t count) const {
    const float* found = nullptr;
    for (int64_t t = 0, met = 0; t < p.teachers; ++t) {
      if (p.own[t] == s) continue;
      const float* powers = powers_ + t * kChunk;
      if (++met == 1) {
        found = powers;
        continue;
      }
      const float* so_far = met == 2 ? found : gaps_;
      for (int64_t k = 0; k < count; k += W) store(gaps_ + k, load(so_far + k) + load(powers + k));
      found = gaps_;
    }
    if (!found)
      for (int64_t k = 0; k < count; k += W) store(gaps_ + k, vf{});
    return found ? found : gaps_;
  }

  void write(const PrototypeChunk<T>& chunk, float highest, float factor, const float* targets,
             int64_t count, T* out) const {
    int64_t k = 0;
    for (; k + W <= count; k += W)
      store_narrow(out + k, exp2_below(chunk.above(highest, k, W) * student_scale2_) * factor -
                                load(targets + k));
    if (k < count) {
      const vf some = chunk.above(highest, k, count - k);
      store_some(out + k, exp2_below(some * student_scale2_) * factor - load(targets + k),
                 count - k);
    }
  }
};

static int64_t prototype_scratch(const PrototypeProblem& p) {
  return PrototypeWorker<float>::scratch(p);  // whatever the element
}

template <bool BACKWARD>
static void prototype_work(void* problem) {
  auto& p = *static_cast<PrototypeProblem*>(problem);
  if (p.element == Element::float32)
    PrototypeWorker<float>::work<BACKWARD>(p);
  else if (p.element == Element::bfloat16)
    PrototypeWorker<BFloat16>::work<BACKWARD>(p);
  else
    PrototypeWorker<Float16>::work<BACKWARD>(p);
}
