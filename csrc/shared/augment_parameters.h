// What is drawn for a view, as fastssl/reference/augment_parameters.py says it and to the same bits: sums,
// products, quotients and roots of doubles, each rounded by itself. For any processor and for CUDA.
#pragma once
#include <cmath>
#include <cstdint>

#include "shared/augment_columns.h"
#include "shared/host_device.h"

namespace fastssl {

struct Range {
  double low, high;
};

struct Chances {
  Range scale, ratio;  // a lowest ratio of 0: the image's own
  double flip, flip_vertical, turn, jitter;
  Range factors[4];  // brightness, contrast, saturation, hue
  double grey, grey_first, blur;
  Range sigma;
  double solarize, threshold, erase;
  Range erase_scale, erase_ratio;
  Range log_ratio, log_erase_ratio;  // of those above
};
constexpr int kChances = sizeof(Chances) / sizeof(double) - 4;  // that are given: not the logarithms

constexpr int kTries = 10;
enum Slot {
  kSlotCrop = 0, kSlotFlip = 22, kSlotFlipVertical, kSlotTurn, kSlotTurns, kSlotJitter, kSlotOrder,
  kSlotFactors = 28, kSlotGrey = 32, kSlotBlur, kSlotSigma, kSlotSolarize, kSlotErase, kSlotErased
};

// Philox4x32-10: numbers in [0, 1) by their slot, best asked for in its order.
class Draws {
 public:
  FASTSSL_SHARED Draws(uint64_t seed, uint64_t sample, uint32_t view)
      : seed_(seed), sample_(sample), view_(view) {}

  FASTSSL_SHARED double operator()(int slot) {
    if (slot / 4 != group_) fill(slot / 4);
    return double(words_[slot % 4]) / 4294967296.0;
  }

 private:
  FASTSSL_SHARED void fill(int group) {
    group_ = group;
    uint32_t c[4] = {uint32_t(group), view_, uint32_t(sample_), uint32_t(sample_ >> 32)};
    uint32_t key[2] = {uint32_t(seed_), uint32_t(seed_ >> 32)};
    for (int round = 0; round < 10; ++round) {
      const uint64_t first = uint64_t(c[0]) * 0xD2511F53u, second = uint64_t(c[2]) * 0xCD9E8D57u;
      c[0] = uint32_t(second >> 32) ^ c[1] ^ key[0];
      c[1] = uint32_t(second);
      c[2] = uint32_t(first >> 32) ^ c[3] ^ key[1];
      c[3] = uint32_t(first);
      key[0] += 0x9E3779B9u;
      key[1] += 0xBB67AE85u;
    }
    for (int i = 0; i < 4; ++i) words_[i] = c[i];
  }

  uint64_t seed_, sample_;
  uint32_t view_, words_[4] = {};
  int group_ = -1;
};

// A product that no sum takes in.
FASTSSL_SHARED double times(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  double product = a * b;
#if defined(__aarch64__)
  asm("" : "+w"(product));
#elif defined(__x86_64__)
  asm("" : "+x"(product));
#endif
  return product;
#endif
}

FASTSSL_SHARED double between(Range range, double u) {
  return range.low + times(range.high - range.low, u);
}

FASTSSL_SHARED double place(double u, double room) { return floor(times(u, room + 1)); }

FASTSSL_SHARED double exp_by_arithmetic(double x) {
  const double n = rint(times(x, 1.4426950408889634));
  const double r = x - times(n, 0.693147180369123816490) - times(n, 1.90821492927058770002e-10);
  // 1 / k!, from that of 14 on
  constexpr double coefficients[] = {
      1 / 87178291200., 1 / 6227020800., 1 / 479001600., 1 / 39916800., 1 / 3628800.,
      1 / 362880.,      1 / 40320.,      1 / 5040.,      1 / 720.,      1 / 120.,
      1 / 24.,          1 / 6.,          1 / 2.,         1.,            1.};
  double power = 0;
  for (const double coefficient : coefficients) power = times(power, r) + coefficient;
  const uint64_t bits = uint64_t(int64_t(n) + 1023) << 52;
  double two_to_n;
  __builtin_memcpy(&two_to_n, &bits, 8);
  return times(power, two_to_n);
}

struct Rectangle {
  double height, width;
  bool found;
};

// The first of ten tries whose sides √(area · ratio) and √(area / ratio) fit, the first of them along.
template <class Fits>
FASTSSL_SHARED Rectangle first_fit(Draws& u, int slot, double area, Range scale, Range log_ratio,
                                   double own, Fits fits) {
  for (int i = 0; i < kTries; ++i) {
    const double part = times(area, between(scale, u(slot + 2 * i)));
    const double ratio = own > 0 ? own : exp_by_arithmetic(between(log_ratio, u(slot + 2 * i + 1)));
    const double along = rint(sqrt(times(part, ratio))), across = rint(sqrt(part / ratio));
    if (fits(along, across)) return {across, along, true};
  }
  return {0, 0, false};
}

// A row of parameters for an image of h × w pixels, whose view has high × wide.
FASTSSL_SHARED void draw_parameters(Draws u, double h, double w, double high, double wide,
                                    const Chances& c, float* row) {
  const bool by_image = c.ratio.low == 0;
  const double own = w / h;
  Rectangle crop = first_fit(u, kSlotCrop, times(h, w), c.scale, c.log_ratio, by_image ? own : 0,
                             [&](double along, double across) {
                               return along > 0 && along <= w && across > 0 && across <= h;
                             });
  double top, left;
  if (crop.found) {
    top = place(u(kSlotFlip - 2), h - crop.height);
    left = place(u(kSlotFlip - 1), w - crop.width);
  } else {  // the largest in the middle whose ratio is allowed
    crop.height = own < c.ratio.low ? rint(w / c.ratio.low) : h;
    crop.width = own > c.ratio.high ? rint(times(h, c.ratio.high)) : w;
    crop.height = crop.height < 1 ? 1 : crop.height;
    crop.width = crop.width < 1 ? 1 : crop.width;
    top = floor((h - crop.height) / 2);
    left = floor((w - crop.width) / 2);
  }
  row[kTop] = float(top);
  row[kLeft] = float(left);
  row[kHeight] = float(crop.height);
  row[kWidth] = float(crop.width);
  row[kFlip] = u(kSlotFlip) < c.flip;
  row[kFlipVertical] = u(kSlotFlipVertical) < c.flip_vertical;
  row[kTurns] = u(kSlotTurn) < c.turn ? float(1 + floor(times(3, u(kSlotTurns)))) : 0;
  row[kOrder] = u(kSlotJitter) < c.jitter ? float(floor(times(24, u(kSlotOrder)))) : -1;
  for (int i = 0; i < 4; ++i) row[kBrightness + i] = float(between(c.factors[i], u(kSlotFactors + i)));
  row[kGrey] = u(kSlotGrey) < c.grey ? (c.grey_first != 0 ? 2 : 1) : 0;
  row[kSigma] = u(kSlotBlur) < c.blur ? float(between(c.sigma, u(kSlotSigma))) : 0;
  row[kSolarize] = u(kSlotSolarize) < c.solarize ? float(c.threshold) : HUGE_VALF;
  for (int i = kEraseTop; i < kAugmentColumns; ++i) row[i] = 0;
  if (!(u(kSlotErase) < c.erase)) return;
  const Rectangle found = first_fit(  // its ratio is height / width
      u, kSlotErased, times(high, wide), c.erase_scale, c.log_erase_ratio, 0,
      [&](double along, double across) { return along < high && across < wide; });
  if (!found.found) return;
  const Rectangle patch{found.width, found.height, true};
  row[kEraseTop] = float(place(u(kSlotErased + 2 * kTries), high - patch.height));
  row[kEraseLeft] = float(place(u(kSlotErased + 2 * kTries + 1), wide - patch.width));
  row[kEraseHeight] = float(patch.height);
  row[kEraseWidth] = float(patch.width);
}

}  // namespace fastssl
