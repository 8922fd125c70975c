// Columns of a row of parameters, as fastssl/reference/augment_parameters.py names them.
#pragma once

namespace fastssl {

enum AugmentColumn {
  kTop, kLeft, kHeight, kWidth, kFlip, kFlipVertical, kTurns, kOrder, kBrightness, kContrast,
  kSaturation, kHue, kGrey, kSigma, kSolarize, kEraseTop, kEraseLeft, kEraseHeight, kEraseWidth,
  kAugmentColumns
};

}  // namespace fastssl
