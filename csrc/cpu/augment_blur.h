// A Gaussian along rows, in place, then along columns, several rows at a time: a row that is read is
// added to all of them.

constexpr int kBlurred = 4;  // rows

// [2r + 1] and kBlurred - 1 zeros to either side.
FASTSSL_INLINE void gaussian_weights(int64_t r, float sigma, float* weights) {
  float* middle = weights + kBlurred - 1 + r;
  double sum = 0;
  for (int64_t i = 0; i <= r; ++i) {
    const double weight = gaussian(i, sigma);
    sum += i > 0 ? 2 * weight : weight;
    middle[i] = middle[-i] = float(weight);
  }
  for (int64_t i = -r; i <= r; ++i) middle[i] *= float(1 / sum);
  for (int64_t i = 1; i < kBlurred; ++i) middle[r + i] = middle[-r - i] = 0;
}

struct Blur {
  int64_t h, w, pitch, r;  // pitch: of rows, in pairs of vectors
  const float* weights;  // as gaussian_weights has them
  float* row;            // [w + 2r], then as much as vectors read
  const float** rows;    // [kBlurred + 2r]

  static constexpr int kAcross = 4;  // vectors

  static int64_t floats(int64_t w, int64_t taps) {
    return round_up(taps + 2 * kBlurred, W) + round_up(w + taps, W) + kAcross * W +
           2 * round_up(taps + kBlurred, W);
  }

  Blur(int64_t h, int64_t w, int64_t pitch, int64_t taps, float sigma, float* memory)
      : h(h), w(w), pitch(pitch), r(blur_radius(taps, sigma)), weights(memory) {
    gaussian_weights(r, sigma, memory);
    rows = reinterpret_cast<const float**>(memory += round_up(taps + 2 * kBlurred, W));
    row = memory + 2 * round_up(taps + kBlurred, W);
  }

  void across(float* x) const {
    for (int64_t i = 0; i < w; i += W) store(row + r + i, load(x + i));
    for (int64_t i = 0; i < r; ++i) {
      row[i] = x[reflected(i - r, w)];
      row[w + r + i] = x[reflected(w + i, w)];
    }
    int64_t i = 0;
    for (; i + 2 * W < w; i += kAcross * W) vectors<kAcross>(i, x);
    for (; i < w; i += W) vectors<1>(i, x);
  }

  // Rows [y, y + kBlurred) of a plane to as many of another; of what lies beyond the plane, anything.
  void down(const float* x, int64_t y, float* to) const {
    for (int64_t j = 0; j < 2 * r + kBlurred; ++j) {
      const int64_t at = y + j - r, last = h - 1 + r;
      rows[j] = x + reflected(at < last ? at : last, h) * pitch;
    }
    for (int64_t i = 0; i < pitch; i += 2 * W) {
      vf first[kBlurred]{}, second[kBlurred]{};
      for (int64_t j = 0; j < 2 * r + kBlurred; ++j) {
        const vf a = load(rows[j] + i), b = load(rows[j] + i + W);
        for (int q = 0; q < kBlurred; ++q) {
          const vf weight = splat(weights[kBlurred - 1 + j - q]);
          first[q] += weight * a;
          second[q] += weight * b;
        }
      }
      for (int q = 0; q < kBlurred; ++q) {
        store(to + q * pitch + i, first[q]);
        store(to + q * pitch + i + W, second[q]);
      }
    }
  }

 private:
  // N vectors of a row from its pixel i on, as far as it goes.
  template <int N>
  FASTSSL_MEMBER void vectors(int64_t i, float* x) const {
    vf sums[N]{};
    for (int64_t j = 0; j <= 2 * r; ++j) {
      const vf weight = splat(weights[kBlurred - 1 + j]);
      for (int v = 0; v < N; ++v) sums[v] += weight * load(row + i + j + v * W);
    }
    for (int v = 0; v < N && i + v * W < w; ++v) store(x + i + v * W, sums[v]);
  }
};
