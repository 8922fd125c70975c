// The k largest of each row of X·Yᵀ: a panel of the bank meets all queries of a block, and of the
// products only those above the query's k-th largest so far are kept, which soon are few.

struct TopkReader {
  const TopkRows& rows;
  Element element;
  int64_t d;

  // Row i as float32, of unit length where there are norms; past the last one a zero row.
  void operator()(int64_t i, float* out) const {
    if (i >= rows.count)
      for (int64_t k = 0; k < d; ++k) out[k] = 0;
    else if (element == Element::float32)
      copy<float>(i, out);
    else if (element == Element::bfloat16)
      copy<BFloat16>(i, out);
    else
      copy<Float16>(i, out);
  }

 private:
  template <class T>
  void copy(int64_t i, float* out) const {
    const T* in = static_cast<const T*>(rows.data) + i * d;
    if (!rows.inv_norm) {
      for (int64_t k = 0; k < d; ++k) out[k] = widen(in[k]);
      return;
    }
    const double factor = rows.inv_norm[i];  // may be beyond float32 where the row is short
    for (int64_t k = 0; k < d; ++k) out[k] = float(widen(in[k]) * factor);
  }
};

template <class T>
static void topk_norms_of(const T* in, int64_t d, int64_t begin, int64_t end, double* inv_norm) {
  for (int64_t i = begin; i < end; ++i) {
    const T* row = in + i * d;
    double squares[W] = {}, total = 0;
    int64_t k = 0;
    for (; k + W <= d; k += W)
      for (int l = 0; l < W; ++l) {
        const double x = widen(row[k + l]);
        squares[l] += x * x;
      }
    for (; k < d; ++k) {
      const double x = widen(row[k]);
      total += x * x;
    }
    for (int l = 0; l < W; ++l) total += squares[l];
    const double norm = __builtin_sqrt(total);
    inv_norm[i] = norm < 1e-12 ? 0 : 1 / norm;
  }
}

static void topk_norms(const void* data, Element element, int64_t d, int64_t begin, int64_t end,
                       double* inv_norm) {
  if (element == Element::float32)
    topk_norms_of(static_cast<const float*>(data), d, begin, end, inv_norm);
  else if (element == Element::bfloat16)
    topk_norms_of(static_cast<const BFloat16*>(data), d, begin, end, inv_norm);
  else
    topk_norms_of(static_cast<const Float16*>(data), d, begin, end, inv_norm);
}

// One bit for each lane that is set in all bits.
FASTSSL_INLINE uint64_t lane_bits(vi v) {
#if defined(__x86_64__) && FASTSSL_WIDTH == 16
  return uint16_t(__builtin_ia32_cvtd2mask512(v));
#elif defined(__x86_64__) && FASTSSL_WIDTH == 8
  return uint32_t(__builtin_ia32_movmskps256((vf)v));
#elif defined(__x86_64__)
  return uint32_t(__builtin_ia32_movmskps((vf)v));
#else
  uint64_t bits = 0;
  for (int l = 0; l < W; ++l) bits |= uint64_t(v[l] & 1) << l;
  return bits;
#endif
}

class TopkWorker {
 public:
  static int64_t scratch(const TopkProblem& p) { return TopkWorker(p, nullptr).used_; }

  static void work(void* problem) {
    auto& p = *static_cast<TopkProblem*>(problem);
    const int64_t place = __atomic_fetch_add(&p.next_scratch, 1, __ATOMIC_RELAXED);
    TopkWorker worker(p, p.scratch + place * scratch(p));
    for (;;) {
      const int64_t piece = __atomic_fetch_add(&p.next_piece, 1, __ATOMIC_RELAXED);
      if (piece >= p.blocks * p.segments) return;
      worker.do_piece(piece / p.segments, piece % p.segments);
    }
  }

 private:
  static constexpr int64_t kCut = 128;  // features summed in one go

  const TopkProblem& p;
  int64_t ld_, used_ = 0;
  float *queries_, *rows_, *panel_, *tile_;  // [block, ld], [NR, ld], [d][NR], [MR, NR]
  float* threshold_;                         // [block] k-th largest so far; NaN: take all
  int64_t* count_;                           // [block]
  uint64_t* keys_;                           // [block, capacity]

  TopkWorker(const TopkProblem& p, char* scratch) : p(p), ld_((round_up(p.d, W) / W | 1) * W) {
    take(queries_, scratch, p.block * ld_);
    take(rows_, scratch, NR * ld_);
    take(panel_, scratch, round_up(p.d, W) * NR);
    take(tile_, scratch, MR * NR);
    take(threshold_, scratch, p.block);
    take(count_, scratch, p.block);
    take(keys_, scratch, p.block * p.capacity);
  }

  template <class T>
  void take(T*& part, char* scratch, int64_t count) {
    part = reinterpret_cast<T*>(uintptr_t(scratch) + uintptr_t(used_));
    used_ += round_up(count * int64_t(sizeof(T)), 64);
  }

  void do_piece(int64_t block, int64_t segment) {
    const TopkReader query{p.queries, p.element, p.d}, entry{p.bank, p.element, p.d};
    const int64_t first = block * p.block, count = lower(p.block, p.queries.count - first);
    const int64_t begin = segment * p.run, end = lower(begin + p.run, p.bank.count);
    for (int64_t r = 0; r < round_up(count, MR); ++r) {
      query(first + r, queries_ + r * ld_);
      threshold_[r] = __builtin_nanf(""), count_[r] = 0;
    }
    for (int64_t j = begin; j < end; j += NR) {
      for (int64_t r = 0; r < NR; ++r) entry(j + r, rows_ + r * ld_);
      pack_panel(rows_, ld_, p.d, panel_);
      const uint64_t inside = ~uint64_t(0) >> (64 - lower(NR, end - j));
      for (int64_t r = 0; r < count; r += MR) {
        multiply(queries_ + r * ld_, ld_, panel_, p.d, kCut, tile_, NR);
        for (int64_t i = 0; i < MR && r + i < count; ++i) collect(r + i, tile_ + i * NR, j, inside);
      }
    }
    for (int64_t r = 0; r < count; ++r) hand_over(r, (first + r) * p.segments + segment);
  }

  // Keeps those of a panel's products with query r that are among its k largest so far.
  FASTSSL_MEMBER void collect(int64_t r, const float* products, int64_t row,
                                                     uint64_t inside) {
    const vf threshold = splat(threshold_[r]);
    uint64_t above = 0;  // not <=: NaN is above all, and all is above NaN
    for (int v = 0; v < NV; ++v)
      above |= lane_bits(~(load(products + v * W) <= threshold)) << v * W;
    above &= inside;
    if (__builtin_expect(above != 0, 0)) {
      uint64_t* keys = keys_ + r * p.capacity;
      for (; above; above &= above - 1) {
        const int at = __builtin_ctzll(above);
        keys[count_[r]++] = topk_key(products[at], row + at);
      }
      if (count_[r] > p.capacity - NR) trim(r);
    }
  }

  void trim(int64_t r) {
    uint64_t* keys = keys_ + r * p.capacity;
    p.select(keys, count_[r], p.k);
    count_[r] = p.k;
    threshold_[r] = topk_value(keys[p.k - 1]);
  }

  void hand_over(int64_t r, int64_t place) {
    if (count_[r] > p.k) trim(r);
    const uint64_t* keys = keys_ + r * p.capacity;
    uint64_t* out = p.found + place * p.k;
    for (int64_t i = 0; i < p.k; ++i) out[i] = i < count_[r] ? keys[i] : 0;
  }
};
