// Vectors of FASTSSL_WIDTH floats, or half as many doubles, in the compiler's own vector types, so
// that one source serves every instruction set. Included for each instruction set and each `real`,
// inside a namespace of their own; must not call inline functions of the standard library, whose
// copies the linker could share between sets.

constexpr int W = FASTSSL_WIDTH * 4 / int(sizeof(real));

typedef real vf __attribute__((vector_size(sizeof(real) * W)));
typedef lane_t vi __attribute__((vector_size(sizeof(real) * W)));
typedef real vf_unaligned __attribute__((vector_size(sizeof(real) * W), aligned(4), may_alias));
typedef double vd __attribute__((vector_size(8 * W)));
typedef double vd_alias __attribute__((vector_size(8 * W), aligned(64), may_alias));

#define FASTSSL_INLINE static inline __attribute__((always_inline))
#define FASTSSL_MEMBER inline __attribute__((always_inline))

FASTSSL_INLINE vf load(const real* p) { return *reinterpret_cast<const vf_unaligned*>(p); }
FASTSSL_INLINE void store(real* p, vf v) { *reinterpret_cast<vf_unaligned*>(p) = v; }
FASTSSL_INLINE vf splat(real a) { return a - vf{}; }
FASTSSL_INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }

FASTSSL_INLINE int64_t lower(int64_t a, int64_t b) { return a < b ? a : b; }
FASTSSL_INLINE int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

FASTSSL_INLINE double sum(vf v) {
  double s = 0;
  for (int l = 0; l < W; ++l) s += v[l];
  return s;
}

// a·b in double precision
FASTSSL_INLINE double exact_dot(const real* a, const real* b, int64_t d) {
  vd sums{};
  const int64_t whole = d / W * W;
  for (int64_t k = 0; k < whole; k += W)
    sums += __builtin_convertvector(load(a + k), vd) * __builtin_convertvector(load(b + k), vd);
  alignas(64) double part[W];
  *reinterpret_cast<vd_alias*>(part) = sums;
  double total = 0;
  for (int l = 0; l < W / 2; ++l) part[l] += part[l + W / 2];
  for (int l = 0; l < W / 2; ++l) total += part[l];
  for (int64_t k = whole; k < d; ++k) total += double(a[k]) * b[k];
  return total;
}

FASTSSL_INLINE real highest(vf v) {
  real m = v[0];
  for (int l = 1; l < W; ++l) m = v[l] > m ? v[l] : m;
  return m;
}

// 0, 1, …, W-1
FASTSSL_INLINE vi lanes() {
  vi v{};
  for (int l = 0; l < W; ++l) v[l] = l;
  return v;
}

template <class Real>
struct Exp2;
template <>
struct Exp2<float> {
  static constexpr int mantissa = 23;
  static constexpr float magic = 12582912.f;  // 1.5 · 2^23: adding it rounds to an integer
  static constexpr float lowest = -126, highest = 126;
  // relative error below 1e-7
  static constexpr float polynomial[] = {1.535336188319500e-4f, 1.339887440266574e-3f,
                                         9.618437357674640e-3f, 5.550332471162809e-2f,
                                         2.402264791363012e-1f, 6.931472028550421e-1f, 1.0f};
};
template <>
struct Exp2<double> {
  static constexpr int mantissa = 52;
  static constexpr double magic = 6755399441055744.0;  // 1.5 · 2^52
  static constexpr double lowest = -1022, highest = 1022;
  // ln(2)^n / n!, relative error below 1e-15
  static constexpr double polynomial[] = {
      2.56784359934881958e-11, 4.44553827187081007e-10, 7.05491162080112088e-09, 1.01780860092396960e-07,
      1.32154867901443053e-06, 1.52527338040598377e-05, 1.54035303933816061e-04, 1.33335581464284411e-03,
      9.61812910762847688e-03, 5.55041086648215762e-02, 2.40226506959100694e-01, 6.93147180559945286e-01,
      1.00000000000000000e+00};
};

// 2^t for t in [lowest, highest]
FASTSSL_INLINE vf exp2(vf t) {
  using E = Exp2<real>;
  const vf shifted = t + E::magic;
  const vf f = t - (shifted - E::magic);  // in [-1/2, 1/2]
  vf p = splat(E::polynomial[0]);
  for (int n = 1; n < int(sizeof(E::polynomial) / sizeof(real)); ++n) p = p * f + E::polynomial[n];
  return (vf)((vi)p + ((vi)shifted << E::mantissa));
}

// The same for any t, by the nearest that is in the range.
FASTSSL_INLINE vf exp2_clamped(vf t) {
  t = vmax(t, splat(Exp2<real>::lowest));
  return exp2(t < Exp2<real>::highest ? t : splat(Exp2<real>::highest));
}

// Of the lanes of two vectors, numbered 0 … 2W-1, any W.
#if defined(__clang__) || __GNUC__ >= 12
#define FASTSSL_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FASTSSL_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, vi{__VA_ARGS__})
#endif

template <int...>
struct Ints {};
template <int N, int... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <int... I>
struct Count<0, I...> {
  using type = Ints<I...>;
};

// In-register transposition of W vectors: log2(W) rounds of two-source permutations.
template <int S, int... I>
FASTSSL_INLINE void transpose_round(vf (&v)[W], Ints<I...>) {
  for (int i = 0; i < W; ++i) {
    if (i & S) continue;
    const vf a = v[i], b = v[i + S];
    v[i] = FASTSSL_SHUFFLE(a, b, ((I & S) ? W + I - S : I)...);
    v[i + S] = FASTSSL_SHUFFLE(a, b, ((I & S) ? W + I : I + S)...);
  }
}

template <int S = W / 2>
FASTSSL_INLINE void transpose(vf (&v)[W]) {
  transpose_round<S>(v, typename Count<W>::type{});
  if constexpr (S > 1) transpose<S / 2>(v);
}
