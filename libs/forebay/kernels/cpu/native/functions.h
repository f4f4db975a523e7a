// exp and what follows from it, sixteen lanes at a time.
#pragma once

#include <initializer_list>

#include "lanes.h"

namespace forebay {

// e^x within 2 units in the last place; exactly 1 at 0; x is bounded to [-87, 88]; a NaN stays one.
// x = n ln 2 + r, |r| <= ln 2 / 2; e^r by its Taylor polynomial to the seventh power.
inline lanes::F32 exponential(lanes::F32 x) {
  using namespace lanes;
  x = minimum(broadcast(88.0f), maximum(broadcast(-87.0f), x));
  const I32 n = round_to_int(multiply(x, broadcast(1.44269504f)));
  const F32 whole = to_float(n);
  F32 r = multiply_add(whole, broadcast(-0.693145752f), x);  // ln 2 in two parts, the first with few bits
  r = multiply_add(whole, broadcast(-1.42860677e-6f), r);
  F32 sum = broadcast(1.0f / 5040.0f);
  for (const float term : {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f}) {
    sum = multiply_add(sum, r, broadcast(term));
  }
  return multiply(sum, power_of_two(n));
}

// 2^x for x <= 0, within 1.1e-4 of itself: a twentieth of what rounding to bf16 takes. Exactly 1 at 0; x is bounded
// to >= -125; a NaN stays one.
inline lanes::F32 short_power_of_two(lanes::F32 x) {
  using namespace lanes;
  x = maximum(broadcast(-125.0f), x);
  const I32 n = round_to_int(x);
  const F32 rest = subtract(x, to_float(n));
  F32 sum = multiply_add(broadcast(0.0550089329f), rest, broadcast(0.242210969f));  // minimax on [-1/2, 1/2]
  sum = multiply_add(sum, rest, broadcast(0.693282902f));
  sum = multiply_add(sum, rest, broadcast(1.0f));
  return scale_by_power_of_two(sum, n);
}

// x / (1 + e^-x)
inline lanes::F32 silu(lanes::F32 x) {
  using namespace lanes;
  const F32 e = exponential(subtract(broadcast(0.0f), x));
  return divide(x, add(broadcast(1.0f), e));
}

}  // namespace forebay
