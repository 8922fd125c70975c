// One view: rows of the resized crop go through the steps while they are in registers, and out, or into
// planes of floats, 0 to 255, where the whole view is needed: contrast, which needs a mean first, turns,
// and blur, which needs neighbours. fastssl/reference/augment.py says what each step is.

FASTSSL_INLINE vf whole_of(vf x) {
  return __builtin_convertvector(__builtin_convertvector(x, vi), vf);
}

// Of vectors of half a register and more.
template <class V>
FASTSSL_INLINE V apart(V x) {
#if defined(__x86_64__)
  if constexpr (sizeof(V) >= 8) asm("" : "+x"(x));
#endif
  return x;
}

// Said outright: a product that is moved out of a loop is not contracted any more. By double where the
// instruction set may have no such instruction.
FASTSSL_INLINE vf fused(vf a, vf b, vf c) {
#if FASTSSL_WIDTH > 4 && defined(__clang__)
  return __builtin_elementwise_fma(a, b, c);
#elif FASTSSL_WIDTH == 16
  return __builtin_ia32_vfmaddps512_mask(a, b, c, -1, 4);
#elif FASTSSL_WIDTH == 8
  return __builtin_ia32_vfmaddps256(a, b, c);
#else
  const vd wide = __builtin_convertvector(a, vd) * __builtin_convertvector(b, vd);
  return __builtin_convertvector(wide + __builtin_convertvector(c, vd), vf);
#endif
}

// As whole numbers, which processors compare twice as fast and whose order is the same but among the
// negative: of two of those, either.
FASTSSL_INLINE vf larger(vf a, vf b) { return (vf)((vi)a > (vi)b ? (vi)a : (vi)b); }
FASTSSL_INLINE vf smaller(vf a, vf b) { return (vf)((vi)a < (vi)b ? (vi)a : (vi)b); }

constexpr int kAbreast = 2;  // vectors of pixels: they do not wait for each other

// So many pixels, as far as those vectors go.
FASTSSL_INLINE int64_t padded(int64_t pixels) { return round_up(pixels, kAbreast * W); }

#include "shared/augment_pixels.h"

#include "cpu/augment_resize.h"
#include "cpu/augment_blur.h"
#include "cpu/augment_write.h"

template <bool quantized>
struct Choose {
  using filter = FloatFilter<vf>;
};
template <>
struct Choose<true> {
  using filter = FixedFilter<vi>;
};

// A quarter turn, counter-clockwise, of a square.
static void turn(float* x, int64_t side, int64_t pitch, float* memory) {
  for (int64_t y = 0; y < side; ++y)
    for (int64_t i = 0; i < side; ++i) memory[(side - 1 - i) * pitch + y] = x[y * pitch + i];
  for (int64_t i = 0; i < side * pitch; ++i) x[i] = memory[i];
}

// A sum of pixels.
struct Total {
  double whole = 0;
  vf part{};
  int64_t count = 0;

  // As many of them as there are.
  FASTSSL_MEMBER void add(vf x, int64_t pixels) { part += lanes() < int32_t(pixels) ? x : vf{}; }

  FASTSSL_MEMBER void end_row(int64_t pixels) {
    count += (pixels + W - 1) / W;
    if (count < 64) return;  // few enough that whole numbers stay exact
    whole += sum(part);
    part = vf{};
    count = 0;
  }

  double all() const { return whole + sum(part); }
};

template <bool quantized, int C>
struct Maker {
  using Rows = Resizer<typename Choose<quantized>::filter, C>;

  static int64_t floats(const AugmentProblem& p, int64_t sh, int64_t sw) {
    const int64_t pitch = padded(p.width), blur = Blur::floats(p.width, p.taps) + C * kBlurred * pitch;
    const int64_t resize = Rows::floats(sh, sw, p.height, p.width), turns = p.height * pitch;
    const int64_t most = resize > turns ? resize : turns;
    return C * p.height * pitch + (most > blur ? most : blur);
  }

  Maker(const AugmentProblem& p, int64_t row, float* memory)
      : p(p),
        q(p.parameters + row * kAugmentColumns),
        out(p, row),
        pitch(padded(p.width)),
        planes(memory),
        memory(memory + C * p.height * pitch) {
    list_steps(q, steps);
    if (C == 3) return;
    int kept = 0;  // of the steps, those that a grey image has
    for (int s = 0; s < steps.count; ++s)
      if (steps.list[s].kind <= kToContrast) steps.list[kept++] = steps.list[s];
    steps.count = kept;
  }

  void make(const Crop& crop) {
    int measured = 0;  // the steps before the one that needs a mean
    while (measured < steps.count && steps.list[measured].ready) ++measured;
    const bool whole = q[kTurns] != 0 || q[kSigma] != 0, twice = measured < steps.count;
    const double grey = resize(crop, measured, twice, !twice && !whole);
    const Writer<C> out = this->out;  // what is written might alias the member
    if (twice) {
      steps.list[measured].mean = float(grey / double(p.height * p.width));
      for (int64_t y = 0; y < p.height; ++y)
        for (int64_t x = 0; x < p.width; x += kAbreast * W) {
          Pixels<vf> pixels[kAbreast];
          get(planes, y, x, p.height, pixels);
          step(pixels, measured, steps.count);
          put(out, y, x, pixels, !whole);
        }
    }
    if (whole) finish();
    out.erase(q);
    end_streams();
  }

 private:
  FASTSSL_MEMBER void step(Pixels<vf> (&pixels)[kAbreast], int from, int to) const {
    for (int s = from; s < to; ++s) change<quantized>(pixels, steps.list[s]);
  }

  FASTSSL_MEMBER void put(const Writer<C>& out, int64_t y, int64_t x, const Pixels<vf> (&pixels)[kAbreast],
                          bool direct) const {
    if (direct) return out.write(y, x, pixels);
    for (int v = 0; v < kAbreast; ++v) keep(y, x + v * W, pixels[v]);
  }

  FASTSSL_MEMBER void get(const float* from, int64_t y, int64_t x, int64_t height,
                          Pixels<vf> (&pixels)[kAbreast]) const {
    const float* at = from + y * pitch + x;
    const int64_t plane = height * pitch;
    for (int v = 0; v < kAbreast; ++v, at += W)
      pixels[v] = {load(at), load(at + C / 2 * plane), load(at + (C - 1) * plane)};
  }

  FASTSSL_MEMBER void keep(int64_t y, int64_t x, const Pixels<vf>& pixels) const {
    float* at = planes + y * pitch + x;
    const int64_t plane = p.height * pitch;
    store(at, pixels.red);
    if (C == 1) return;
    store(at + plane, pixels.green);
    store(at + 2 * plane, pixels.blue);
  }

  // With the first steps; what grey sums up to, if it is measured.
  double resize(const Crop& crop, int count, bool measure, bool direct) {
    const Writer<C> out = this->out;
    const int64_t height = p.height, width = p.width;
    Total grey;
    Rows rows(crop, height, width, q[kFlip] != 0, memory);
    for (int64_t y = 0; y < height; ++y) {
      rows.go_to(y);
      const int64_t to = q[kFlipVertical] != 0 ? height - 1 - y : y;
      for (int64_t x = 0; x < width; x += kAbreast * W) {
        Pixels<vf> pixels[kAbreast];
        rows.get(x, pixels);
        step(pixels, 0, count);
        if (measure)
          for (int v = 0; v < kAbreast; ++v)
            grey.add(C == 3 ? cut<quantized>(grey_of(pixels[v])) : pixels[v].red, width - x - v * W);
        put(out, to, x, pixels, direct);
      }
      grey.end_row(width);
    }
    return grey.all();
  }

  // What is done to whole planes, and out.
  void finish() {
    const int64_t plane = p.height * pitch;
    for (int k = 0; k < C; ++k)
      for (int turns = int(q[kTurns]); turns > 0; --turns) turn(planes + k * plane, p.height, pitch, memory);
    if (q[kSigma] == 0) {
      for (int64_t y = 0; y < p.height; ++y)
        for (int64_t x = 0; x < p.width; x += kAbreast * W) {
          Pixels<vf> pixels[kAbreast];
          get(planes, y, x, p.height, pixels);
          out.write(y, x, pixels);
        }
      return;
    }
    const Blur blur(p.height, p.width, pitch, p.taps, q[kSigma], memory);
    float* blurred = memory + Blur::floats(p.width, p.taps);  // [C, kBlurred, pitch]
    for (int64_t y = 0; y < C * p.height; ++y) blur.across(planes + y * pitch);
    for (int64_t y = 0; y < p.height; y += kBlurred) {
      for (int k = 0; k < C; ++k) blur.down(planes + k * plane, y, blurred + k * kBlurred * pitch);
      for (int64_t row = 0; row < lower(kBlurred, p.height - y); ++row)
        for (int64_t x = 0; x < p.width; x += kAbreast * W) {
          Pixels<vf> pixels[kAbreast];
          get(blurred, row, x, kBlurred, pixels);
          for (Pixels<vf>& x : pixels)
            if (quantized) x = {rounded(x.red), rounded(x.green), rounded(x.blue)};
          out.write(y + row, x, pixels);
        }
    }
  }

  const AugmentProblem& p;
  const float* q;
  const Writer<C> out;
  const int64_t pitch;
  float *planes, *memory;  // [C, height, pitch]; what is needed for a while
  Steps steps;
};

template <bool quantized, int C>
static void make_view(const AugmentProblem& p, int64_t row, float* memory) {
  const float* q = p.parameters + row * kAugmentColumns;
  const int64_t image = row % p.images, h = p.sizes[2 * image], w = p.sizes[2 * image + 1];
  Crop crop{.data = nullptr,
            .end = p.data + p.bytes,
            .height = int64_t(q[kHeight]),
            .width = int64_t(q[kWidth]),
            .row = p.planar ? w : w * C,
            .pixel = p.planar ? 1 : C,
            .channel = p.planar ? h * w : 1,
            .planes = p.planar ? C : 1};
  crop.data = p.data + p.offsets[image] + int64_t(q[kTop]) * crop.row + int64_t(q[kLeft]) * crop.pixel;
  for (int64_t y = 0; y < kNarrowed; ++y) crop.fetch(y);
  Maker<quantized, C>(p, row, memory).make(crop);
}

static int64_t augment_scratch(const AugmentProblem& p) {
  const auto floats = p.channels == 3 ? (p.quantized ? Maker<true, 3>::floats : Maker<false, 3>::floats)
                                      : (p.quantized ? Maker<true, 1>::floats : Maker<false, 1>::floats);
  int64_t most = 0;
  for (int64_t i = 0; i < p.rows; ++i) {
    const float* q = p.parameters + i * kAugmentColumns;
    const int64_t needed = floats(p, int64_t(q[kHeight]), int64_t(q[kWidth]));
    most = most < needed ? needed : most;
  }
  return most;
}

static void augment_view(const AugmentProblem& p, int64_t row, float* memory) {
  if (p.channels == 3)
    p.quantized ? make_view<true, 3>(p, row, memory) : make_view<false, 3>(p, row, memory);
  else
    p.quantized ? make_view<true, 1>(p, row, memory) : make_view<false, 1>(p, row, memory);
}
