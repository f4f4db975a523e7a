// RMSNorm: x / sqrt(mean(x^2) + epsilon) * weight.
#pragma once

#include <cmath>

#include "lanes.h"

namespace forebay {

// 1 / sqrt(mean + epsilon) over `count` numbers; x is padded with zeros to a multiple of 16.
inline float inverse_rms(const float* x, int count, float epsilon) {
  using namespace lanes;
  F32 squares = broadcast(0.0f);
  for (int i = 0; i < count; i += kCount) {
    const F32 part = load(x + i);
    squares = multiply_add(part, part, squares);
  }
  return 1.0f / std::sqrt(sum(squares) / static_cast<float>(count) + epsilon);
}

// Lanes i .. i + 15 of the normed row.
inline lanes::F32 normed(const float* x, const float* weight, float inverse, int i) {
  using namespace lanes;
  return multiply(multiply(load(x + i), broadcast(inverse)), load(weight + i));
}

}  // namespace forebay
