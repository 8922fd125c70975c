// How much memory a block of threads needs for a view, and what it does with more. In floats, regions
// beginning at multiples of four.
#pragma once
#include <cstdint>

#include "shared/host_device.h"

namespace fastssl {

struct ViewShape {
  int height, width, channels, taps, threads;
};

constexpr int kHeader = 128;     // of what a block knows of its view
constexpr int kMostRows = 16;    // of the view, made at a time
constexpr int kRun = 4;          // pixels that a thread blurs at a time, and taps
constexpr int kWarp = 32;
constexpr int kUsualWeights = 6;  // of a pixel, as a view is planned for

FASTSSL_SHARED int64_t quads(int64_t floats) { return (floats + 3) / 4 * 4; }

// Of rows of the view on their way through a blur: with their reflections, and as much as a run reads.
FASTSSL_SHARED int64_t blur_pitch(const ViewShape& v, int radius) {
  return quads(v.width) + quads(2 * radius + 1);
}

// Of taps in double, and at first of the sums of a warp.
FASTSSL_SHARED int64_t gaussian_floats(int taps) { return quads(2 * (taps > kWarp ? taps : kWarp)); }

// Sums of threads, taps in double and in float, where each pixel's weights begin.
FASTSSL_SHARED int64_t fixed_floats(const ViewShape& v) {
  return kHeader + quads(2 * v.threads) + gaussian_floats(v.taps) + quads(v.taps + kRun) +
         quads(v.width) + quads(v.height);
}

FASTSSL_SHARED int64_t kept_floats(const ViewShape& v, int rows, int radius) {
  return quads(int64_t(rows + 2 * radius) * v.channels * v.width);
}

// So many rows of the view from so many narrowed rows of the crop; or, blurred, on their way through it.
FASTSSL_SHARED int64_t working_floats(const ViewShape& v, int rows, int64_t narrowed, int radius) {
  const int64_t crop = quads(narrowed * v.channels * v.width);
  const int64_t blur =
      radius > 0 ? rows * v.channels * (blur_pitch(v, radius) + quads(v.width)) : 0;
  return crop > blur ? crop : blur;
}

FASTSSL_SHARED int64_t needed_floats(const ViewShape& v, int rows, int64_t narrowed, int weights) {
  const int radius = v.taps / 2;
  return fixed_floats(v) + quads(int64_t(weights) * v.width) + quads(int64_t(weights) * v.height) +
         kept_floats(v, rows, radius) + working_floats(v, rows, narrowed, radius);
}

// Rows of the view that are made at a time, and rows of the crop that are narrowed for them at a time.
struct Strip {
  int rows;
  int64_t group;
};

// Of an image `scale` times as high as the view, whose pixels are means of `weights` rows.
FASTSSL_SHARED Strip strip_of(const ViewShape& v, int64_t floats, int radius, double scale,
                              int64_t weights) {
  const int most = v.height < kMostRows ? v.height : kMostRows;
  for (int rows = most; rows > 0; rows -= rows > kRun ? kRun : 1) {
    const int64_t all = int64_t((rows - 1) * scale) + 2 + weights;
    if (kept_floats(v, rows, radius) + working_floats(v, rows, all, radius) <= floats)
      return {rows, all};
  }
  for (int rows = most < kRun ? most : kRun; rows > 0; --rows) {  // then by groups
    const int64_t left = floats - kept_floats(v, rows, radius);
    if (left >= working_floats(v, rows, 1, radius))
      return {rows, left / (int64_t(v.channels) * v.width)};
  }
  return {0, 0};  // the plan does not let it come to that
}

// Where a block works: blocks that share a multiprocessor's memory, so that some compute while others
// wait; one that has it all; or, where rows of the view are too long for that, global memory.
struct AugmentPlan {
  int threads;
  int64_t floats;
  bool on_chip;
};

constexpr int kMostThreads = 640;  // of a multiprocessor's blocks together: 96 registers each

inline AugmentPlan plan_augment(ViewShape v, int64_t bytes_on_chip) {
  const int rows = v.height < kRun ? v.height : kRun;
  constexpr int64_t reserved = 1024;  // of every block's, by CUDA
  for (int parts = 4; parts > 0; parts /= 2) {
    v.threads = kMostThreads / parts;
    const int64_t floats = ((bytes_on_chip + reserved) / parts - reserved) / 16 * 4;
    if (needed_floats(v, rows, rows * 3 / 2 + 4, kUsualWeights) <= floats) return {v.threads, floats, true};
    if (parts == 1 && needed_floats(v, 1, 1, 2) <= floats) return {v.threads, floats, true};
  }
  return {v.threads, needed_floats(v, rows, kMostRows, kUsualWeights), false};
}

}  // namespace fastssl
