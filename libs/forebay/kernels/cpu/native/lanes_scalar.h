// Sixteen lanes as plain arrays: any machine, and the readable reference of the other two. See lanes.h.
#pragma once

#include <cmath>
#include <initializer_list>

namespace forebay::lanes {

struct F32 {
  float lane[kCount];
};
struct I32 {
  std::int32_t lane[kCount];
};

template <class Function>
inline F32 each(Function function) {
  F32 result;
  for (int i = 0; i < kCount; ++i) result.lane[i] = function(i);
  return result;
}

template <class Function>
inline I32 each_int(Function function) {
  I32 result;
  for (int i = 0; i < kCount; ++i) result.lane[i] = function(i);
  return result;
}

inline F32 broadcast(float value) {
  return each([&](int) { return value; });
}
inline F32 load(const float* from) {
  F32 result;
  std::memcpy(&result, from, sizeof result);
  return result;
}
inline void store(float* to, F32 value) { std::memcpy(to, &value, sizeof value); }
inline F32 add(F32 a, F32 b) {
  return each([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline F32 subtract(F32 a, F32 b) {
  return each([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline F32 multiply(F32 a, F32 b) {
  return each([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline F32 divide(F32 a, F32 b) {
  return each([&](int i) { return a.lane[i] / b.lane[i]; });
}
inline F32 multiply_add(F32 a, F32 b, F32 c) {
  return each([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
inline F32 maximum(F32 a, F32 b) {
  return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline F32 minimum(F32 a, F32 b) {
  return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
// Magnitudes are ordered as their bits are, infinity above all numbers and NaN above infinity.
inline float largest_magnitude(F32 a, F32 b) {
  std::uint32_t most = 0;
  for (const F32& part : {a, b}) {
    for (int i = 0; i < kCount; ++i) {
      std::uint32_t bits;
      std::memcpy(&bits, &part.lane[i], sizeof bits);
      bits &= 0x7fffffffu;
      most = bits > most ? bits : most;
    }
  }
  float result;
  std::memcpy(&result, &most, sizeof result);
  return result;
}
// Halves are added to halves, as the vector instructions do.
inline float sum(F32 a) {
  for (int width = kCount / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) a.lane[i] += a.lane[i + width];
  }
  return a.lane[0];
}
inline float largest(F32 a) {
  float result = a.lane[0];
  for (int i = 1; i < kCount; ++i) result = a.lane[i] > result ? a.lane[i] : result;
  return result;
}
inline F32 keep_first(F32 a, int count, float otherwise) {
  return each([&](int i) { return i < count ? a.lane[i] : otherwise; });
}

inline I32 broadcast_int(std::int32_t value) {
  return each_int([&](int) { return value; });
}
inline I32 broadcast_word(const void* from) {
  std::int32_t word;
  std::memcpy(&word, from, sizeof word);
  return broadcast_int(word);
}
inline I32 load_words(const void* from) {
  I32 result;
  std::memcpy(&result, from, sizeof result);
  return result;
}
inline void store_words(void* to, I32 words) { std::memcpy(to, &words, sizeof words); }
inline I32 add_ints(I32 a, I32 b) {
  return each_int([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline I32 subtract_ints(I32 a, I32 b) {
  return each_int([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline I32 shift_left_8(I32 a) {
  return each_int([&](int i) { return a.lane[i] * 256; });
}
inline I32 shift_right_8(I32 a) {
  return each_int([&](int i) { return a.lane[i] >> 8; });
}
inline std::int32_t sum_ints(I32 a) {
  std::int32_t result = 0;
  for (int i = 0; i < kCount; ++i) result += a.lane[i];
  return result;
}
inline F32 to_float(I32 a) {
  return each([&](int i) { return static_cast<float>(a.lane[i]); });
}
// What does not fit an integer (a NaN too) becomes INT32_MIN, as the vector instructions have it.
inline I32 round_to_int(F32 a) {
  return each_int([&](int i) {
    const bool fits = a.lane[i] >= -2147483648.0f && a.lane[i] < 2147483648.0f;
    return fits ? static_cast<std::int32_t>(std::nearbyint(a.lane[i])) : INT32_MIN;
  });
}
inline F32 power_of_two(I32 a) {
  return each([&](int i) {
    const std::uint32_t bits = static_cast<std::uint32_t>(a.lane[i] + 127) << 23;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  });
}
inline F32 scale_by_power_of_two(F32 a, I32 n) {
  return each([&](int i) {
    std::uint32_t bits;
    std::memcpy(&bits, &a.lane[i], sizeof bits);
    bits += static_cast<std::uint32_t>(n.lane[i]) << 23;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  });
}
inline void store_bytes(std::int8_t* to, I32 a) {
  for (int i = 0; i < kCount; ++i) {
    const std::int32_t value = a.lane[i];
    to[i] = static_cast<std::int8_t>(value < -128 ? -128 : (value > 127 ? 127 : value));
  }
}
inline I32 low_nibbles(I32 a) {
  return each_int([&](int i) { return a.lane[i] & 0x0f0f0f0f; });
}
inline I32 high_nibbles(I32 a) {
  return each_int([&](int i) { return (a.lane[i] >> 4) & 0x0f0f0f0f; });
}

inline I32 dot4(I32 sums, I32 unsigned_bytes, I32 signed_bytes) {
  std::uint8_t a[4 * kCount];
  std::int8_t b[4 * kCount];
  std::memcpy(a, &unsigned_bytes, sizeof a);
  std::memcpy(b, &signed_bytes, sizeof b);
  for (int i = 0; i < kCount; ++i) {
    for (int k = 4 * i; k < 4 * i + 4; ++k) sums.lane[i] += std::int32_t{a[k]} * std::int32_t{b[k]};
  }
  return sums;
}
inline I32 dot4_nibbles(I32 sums, I32 nibbles, I32 signed_bytes) { return dot4(sums, nibbles, signed_bytes); }

inline float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t magnitude = half & 0x7fffu;
  if (magnitude < 0x0400u) {  // subnormal or zero
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -value : value;
  }
  const std::uint32_t exponent_shift = magnitude >= 0x7c00u ? (255u - 31u) << 23 : (127u - 15u) << 23;
  const std::uint32_t bits = sign | ((magnitude << 13) + exponent_shift);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline F32 load_halves(const std::uint16_t* from) {
  return each([&](int i) { return half_to_float(from[i]); });
}

inline float bf16_to_float(std::uint32_t bf16) {
  const std::uint32_t bits = bf16 << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline std::uint16_t float_to_bf16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline void store_bf16(std::uint16_t* to, F32 value) {
  for (int i = 0; i < kCount; ++i) to[i] = float_to_bf16(value.lane[i]);
}
inline F32 dot2(F32 sums, I32 a, I32 b) {
  return each([&](int i) {
    const auto x = static_cast<std::uint32_t>(a.lane[i]), y = static_cast<std::uint32_t>(b.lane[i]);
    const float odd = bf16_to_float(x >> 16) * bf16_to_float(y >> 16);
    return (sums.lane[i] + odd) + bf16_to_float(x & 0xffffu) * bf16_to_float(y & 0xffffu);
  });
}

}  // namespace forebay::lanes
