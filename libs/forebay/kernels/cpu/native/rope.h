// Rotary position embedding in the half-split order: number i turns with number i + head_dim / 2.
#pragma once

#include <cmath>

#include "lanes.h"

namespace forebay {

// Cosines, then sines, of one position: [2][half]. The angle is rounded to float32 as the models' authors do it.
inline void rotation_of(int position, const float* inverse_frequencies, int half, float* to) {
  for (int i = 0; i < half; ++i) {
    const float angle = static_cast<float>(position) * inverse_frequencies[i];
    to[i] = std::cos(angle);
    to[half + i] = std::sin(angle);
  }
}

// Turns one head in place. x: [2 * half]; rotation: as above. half is a multiple of 8; numbers past a multiple of 16
// are done one by one with the same roundings.
inline void rotate(float* x, const float* rotation, int half) {
  using namespace lanes;
  int i = 0;
  for (; i + kCount <= half; i += kCount) {
    const F32 a = load(x + i), b = load(x + half + i);
    const F32 cosine = load(rotation + i), sine = load(rotation + half + i);
    store(x + i, subtract(multiply(a, cosine), multiply(b, sine)));
    store(x + half + i, add(multiply(b, cosine), multiply(a, sine)));
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    const float cosine = rotation[i], sine = rotation[half + i];
    const float turned_a = a * cosine, turned_b = b * cosine;
    x[i] = turned_a - b * sine;
    x[half + i] = turned_b + a * sine;
  }
}

}  // namespace forebay
