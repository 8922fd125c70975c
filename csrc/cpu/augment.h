// The CPU kernel of augment as the binding sees it: one function per instruction set.
#pragma once
#include "cpu/element.h"
#include "shared/augment_columns.h"

namespace fastssl {

struct AugmentProblem {
  const uint8_t* data;
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

struct AugmentKernels {
  int64_t (*scratch)(const AugmentProblem&);  // floats that a worker needs
  void (*view)(const AugmentProblem&, int64_t row, float* scratch);
};

namespace plain { extern const AugmentKernels augment; }
#if defined(__x86_64__)
namespace avx2 { extern const AugmentKernels augment; }
namespace avx512 { extern const AugmentKernels augment; }
#endif

}  // namespace fastssl
