// A batch of views as the kernels of augment are told of it, on any processor.
#pragma once
#include "shared/augment_columns.h"
#include "shared/element.h"

namespace fastssl {

struct AugmentProblem {
  const uint8_t* data;
  int64_t bytes;                   // of data
  const int64_t *offsets, *sizes;  // [images], [images, 2]
  int64_t images, channels;
  bool planar;              // [C, H, W] rather than [H, W, C]
  const float* parameters;  // [rows, kAugmentColumns]
  int64_t rows;
  int64_t height, width, taps;
  float gain[3], bias[3];  // of the normalisation
  bool quantized;
  Element element;  // of the result
  bool channels_last;
  char* out;
};

}  // namespace fastssl
