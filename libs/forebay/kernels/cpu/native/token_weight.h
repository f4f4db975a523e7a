// Weights of tokens as whole numbers: engine/token_weights.py, bit for bit, which says why.
#pragma once

#include <cstdint>
#include <cstring>

namespace forebay {

constexpr int kUnitBits = 42;

// As many numbers of 64 bits as a register of this build holds; the compiler's own vectors.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kWeightsTogether = kVectorBytes / 8;
using Doubles [[gnu::vector_size(kVectorBytes)]] = double;
using Floats [[gnu::vector_size(kVectorBytes / 2)]] = float;
using Weights [[gnu::vector_size(kVectorBytes)]] = std::uint64_t;

inline std::uint64_t sum_of(const Weights& weights) {
  std::uint64_t sum = 0;
  for (int i = 0; i < kWeightsTogether; ++i) sum += weights[i];
  return sum;
}

inline Doubles load_doubles(const float* from) {
  Floats some;
  std::memcpy(&some, from, sizeof some);
  return __builtin_convertvector(some, Doubles);
}

// 2^(octaves + kUnitBits) to the nearest whole numbers, octaves <= 0. Nothing here may be fused or reordered.
inline Weights token_weights(const Doubles& octaves) {
  constexpr double kLeastOctaves = -64.0, kNearest = 0x1.8p52, kWhole = 0x1p52;
  const Doubles least = Doubles{} + kLeastOctaves;
  const Doubles bounded = octaves > least ? octaves : least;
  const Doubles nearest = bounded + kNearest;
  const Doubles rest = bounded - (nearest - kNearest);
  Doubles power = rest * 1.0206094884779308e-07 + 1.3255227486297374e-06;
  power = power * rest + 1.5252672051246925e-05;
  power = power * rest + 0.0001540345583961766;
  power = power * rest + 0.0013333558202056396;
  power = power * rest + 0.00961812915942186;
  power = power * rest + 0.05550410866464564;
  power = power * rest + 0.24022650695812914;
  power = power * rest + 0.6931471805599463;
  power = power * rest + 1.0;
  const Weights exponent = ((Weights)nearest + kUnitBits) << 52;
  const Doubles scaled = (Doubles)((Weights)power + exponent) + kWhole;
  return (Weights)scaled & ((std::uint64_t{1} << 52) - 1);
}

}  // namespace forebay
