// The number formats of KV, one number at a time; loops over these functions are what the compiler makes vectors of.
//
// Everything goes through float32 and is rounded once, to nearest even, by integer arithmetic, so that every
// instruction set gives the same bits. Finite numbers beyond a format's range become its largest; NaN and infinity
// never become finite. kernels/kv_numbers.py is the same in numpy.
#pragma once

#include <cstdint>
#include <cstring>

namespace forebay::kv_numbers {

enum class Dtype : int { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2, kFloat8E4m3 = 3, kInt8 = 4 };

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

constexpr std::uint32_t kInfinity = 0x7f800000u, kNan = 0x7fc00000u, kMagnitude = 0x7fffffffu;

// Bits above `shift` of the magnitude, rounded to nearest even.
inline std::uint32_t rounded(std::uint32_t magnitude, int shift) {
  return (magnitude + ((1u << (shift - 1)) - 1u) + ((magnitude >> shift) & 1u)) >> shift;
}

struct Float32 {
  using Raw = std::uint32_t;
  static float decode(Raw raw) { return bits_as<float>(raw); }
  static Raw encode(float value) {
    const auto bits = bits_as<std::uint32_t>(value);
    return (bits & kMagnitude) > kInfinity ? kNan : bits;
  }
};

struct Bfloat16 {
  using Raw = std::uint16_t;
  static float decode(Raw raw) { return bits_as<float>(std::uint32_t{raw} << 16); }
  static Raw encode(float value) {
    const auto bits = bits_as<std::uint32_t>(value);
    const std::uint32_t magnitude = bits & kMagnitude;
    std::uint32_t result = rounded(magnitude, 16);
    result = result >= 0x7f80u ? 0x7f7fu : result;
    result = magnitude >= kInfinity ? 0x7f80u : result;
    result |= (bits >> 16) & 0x8000u;
    return static_cast<Raw>(magnitude > kInfinity ? 0x7fc0u : result);
  }
};

struct Float16 {
  using Raw = std::uint16_t;
  static float decode(Raw raw) {
    const std::uint32_t sign = (std::uint32_t{raw} & 0x8000u) << 16, shifted = (std::uint32_t{raw} & 0x7fffu) << 13;
    // The exponent's bias is mended by a multiplication, which makes subnormal numbers normal.
    const auto finite = bits_as<std::uint32_t>(bits_as<float>(shifted) * 0x1p112f);
    const std::uint32_t magnitude = shifted >= 0x0f800000u ? shifted | kInfinity : finite;
    return bits_as<float>(magnitude | sign);
  }
  static Raw encode(float value) {
    const auto bits = bits_as<std::uint32_t>(value);
    const std::uint32_t magnitude = bits & kMagnitude;
    const std::uint32_t bounded = magnitude < 0x477fe000u ? magnitude : 0x477fe000u;
    // The unit in the last place of 0.5 is that of a subnormal half.
    const std::uint32_t small = bits_as<std::uint32_t>(bits_as<float>(bounded) + 0.5f) - 0x3f000000u;
    std::uint32_t result = bounded < 0x38800000u ? small : rounded(bounded, 13) - (112u << 10);
    result = magnitude >= kInfinity ? 0x7c00u : result;
    result |= (bits >> 16) & 0x8000u;
    return static_cast<Raw>(magnitude > kInfinity ? 0x7e00u : result);
  }
};

struct Float8E4m3 {
  using Raw = std::uint8_t;
  static float decode(Raw raw) {
    const std::uint32_t sign = (std::uint32_t{raw} & 0x80u) << 24, magnitude = std::uint32_t{raw} & 0x7fu;
    const auto finite = bits_as<std::uint32_t>(bits_as<float>(magnitude << 20) * 0x1p120f);
    return bits_as<float>(magnitude == 0x7fu ? kNan : finite | sign);
  }
  static Raw encode(float value) {
    const auto bits = bits_as<std::uint32_t>(value);
    const std::uint32_t magnitude = bits & kMagnitude;
    const std::uint32_t bounded = magnitude < 0x43e00000u ? magnitude : 0x43e00000u;
    // The unit in the last place of 2^14 is that of a subnormal number of this format.
    const std::uint32_t small = bits_as<std::uint32_t>(bits_as<float>(bounded) + 0x1p14f) - 0x46800000u;
    const std::uint32_t result = bounded < 0x3c800000u ? small : rounded(bounded, 20) - (120u << 3);
    return static_cast<Raw>(magnitude >= kInfinity ? 0x7fu : result | ((bits >> 24) & 0x80u));
  }
};

// An integer that is nothing without its row's scale.
struct Int8 {
  using Raw = std::uint8_t;
};

constexpr float kSmallestAmax = 0x1p-119f;  // rows below it become zeros: scale and inverse stay normal numbers
constexpr float kLargestScale = 0x1.020406p+121f;  // 127 times it is finite

inline float integer_of(std::uint8_t raw) { return static_cast<float>(static_cast<std::int8_t>(raw)); }

// Makes integers of a row and returns their scale; NaN if any number of the row is NaN or infinite.
inline float encode_int8(const float* row, int count, std::uint8_t* to) {
  std::uint32_t most = 0;
  for (int i = 0; i < count; ++i) {
    const std::uint32_t magnitude = bits_as<std::uint32_t>(row[i]) & kMagnitude;
    most = magnitude > most ? magnitude : most;
  }
  const auto amax = bits_as<float>(most);
  if (most >= kInfinity || amax < kSmallestAmax) {
    std::memset(to, 0, static_cast<std::size_t>(count));
    return most >= kInfinity ? bits_as<float>(kNan) : 0.0f;
  }
  const float scale = amax / 127.0f, inverse = 127.0f / amax;
  for (int i = 0; i < count; ++i) {
    // Adding 1.5 * 2^23 rounds to an integer, which is then in the lowest bits.
    to[i] = static_cast<std::uint8_t>(bits_as<std::uint32_t>(row[i] * inverse + 0x1.8p23f));
  }
  return scale < kLargestScale ? scale : kLargestScale;
}

}  // namespace forebay::kv_numbers
