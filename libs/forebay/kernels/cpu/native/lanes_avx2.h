// Sixteen lanes in two 256-bit registers: AVX2, FMA, F16C. See lanes.h.
#pragma once

#include <immintrin.h>

namespace forebay::lanes {

struct F32 {
  __m256 low, high;
};
struct I32 {
  __m256i low, high;
};

inline F32 broadcast(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline F32 load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void store(float* to, F32 value) {
  _mm256_storeu_ps(to, value.low);
  _mm256_storeu_ps(to + 8, value.high);
}
inline F32 add(F32 a, F32 b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline F32 subtract(F32 a, F32 b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline F32 multiply(F32 a, F32 b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline F32 divide(F32 a, F32 b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline F32 multiply_add(F32 a, F32 b, F32 c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline F32 maximum(F32 a, F32 b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline F32 minimum(F32 a, F32 b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline __m256i magnitude_bits(__m256 a) {
  return _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(0x7fffffff));
}
// Magnitudes are ordered as their bits are, infinity above all numbers and NaN above infinity.
inline float largest_magnitude(F32 a, F32 b) {
  const __m256i most_a = _mm256_max_epi32(magnitude_bits(a.low), magnitude_bits(a.high));
  const __m256i most_b = _mm256_max_epi32(magnitude_bits(b.low), magnitude_bits(b.high));
  const __m256i eight = _mm256_max_epi32(most_a, most_b);
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  const __m128i one = _mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1));
  return _mm_cvtss_f32(_mm_castsi128_ps(one));
}
inline float sum(F32 a) {
  const __m256 eight = _mm256_add_ps(a.low, a.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest(F32 a) {
  const __m256 eight = _mm256_max_ps(a.low, a.high);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline F32 keep_first(F32 a, int count, float otherwise) {
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i in_low = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), index);
  const __m256i in_high = _mm256_cmpgt_epi32(_mm256_set1_epi32(count - 8), index);
  const __m256 other = _mm256_set1_ps(otherwise);
  return {_mm256_blendv_ps(other, a.low, _mm256_castsi256_ps(in_low)),
          _mm256_blendv_ps(other, a.high, _mm256_castsi256_ps(in_high))};
}

inline I32 broadcast_int(std::int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
inline I32 broadcast_word(const void* from) {
  std::int32_t word;
  std::memcpy(&word, from, sizeof word);
  return broadcast_int(word);
}
inline I32 load_words(const void* from) {
  const auto* words = static_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1)};
}
inline void store_words(void* to, I32 words) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), words.low);
  _mm256_storeu_si256(static_cast<__m256i*>(to) + 1, words.high);
}
inline I32 add_ints(I32 a, I32 b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
inline I32 subtract_ints(I32 a, I32 b) { return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)}; }
inline I32 shift_left_8(I32 a) { return {_mm256_slli_epi32(a.low, 8), _mm256_slli_epi32(a.high, 8)}; }
inline I32 shift_right_8(I32 a) { return {_mm256_srai_epi32(a.low, 8), _mm256_srai_epi32(a.high, 8)}; }
inline std::int32_t sum_ints(I32 a) {
  std::int32_t lane[kCount];
  store_words(lane, a);
  std::int32_t result = 0;
  for (const std::int32_t value : lane) result += value;
  return result;
}
inline F32 to_float(I32 a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
inline I32 round_to_int(F32 a) { return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)}; }
inline F32 power_of_two(I32 a) {
  const I32 biased = add_ints(a, broadcast_int(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(biased.low, 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(biased.high, 23))};
}
inline F32 scale_by_power_of_two(F32 a, I32 n) {
  return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.low), _mm256_slli_epi32(n.low, 23))),
          _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.high), _mm256_slli_epi32(n.high, 23)))};
}
inline void store_bytes(std::int8_t* to, I32 a) {
  // Packing works within 128-bit halves: [low0 high0 | low1 high1], put right by the permutation.
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.low, a.high), 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
}
inline I32 low_nibbles(I32 a) {
  const __m256i mask = _mm256_set1_epi8(0x0f);
  return {_mm256_and_si256(a.low, mask), _mm256_and_si256(a.high, mask)};
}
inline I32 high_nibbles(I32 a) { return low_nibbles({_mm256_srli_epi16(a.low, 4), _mm256_srli_epi16(a.high, 4)}); }

// Products of 8-bit numbers do not fit the 16-bit sums of vpmaddubsw, so even and odd bytes are widened first.
inline __m256i dot4_widened(__m256i sums, __m256i unsigned_bytes, __m256i signed_bytes) {
  const __m256i even_a = _mm256_and_si256(unsigned_bytes, _mm256_set1_epi16(0x00ff));
  const __m256i odd_a = _mm256_srli_epi16(unsigned_bytes, 8);
  const __m256i even_b = _mm256_srai_epi16(_mm256_slli_epi16(signed_bytes, 8), 8);
  const __m256i odd_b = _mm256_srai_epi16(signed_bytes, 8);
  sums = _mm256_add_epi32(sums, _mm256_madd_epi16(even_a, even_b));
  return _mm256_add_epi32(sums, _mm256_madd_epi16(odd_a, odd_b));
}
inline I32 dot4(I32 sums, I32 unsigned_bytes, I32 signed_bytes) {
  return {dot4_widened(sums.low, unsigned_bytes.low, signed_bytes.low),
          dot4_widened(sums.high, unsigned_bytes.high, signed_bytes.high)};
}
inline __m256i dot4_short(__m256i sums, __m256i nibbles, __m256i signed_bytes) {
  const __m256i pairs = _mm256_maddubs_epi16(nibbles, signed_bytes);  // at most 2 * 15 * 128
  return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline I32 dot4_nibbles(I32 sums, I32 nibbles, I32 signed_bytes) {
  return {dot4_short(sums.low, nibbles.low, signed_bytes.low), dot4_short(sums.high, nibbles.high, signed_bytes.high)};
}

inline F32 load_halves(const std::uint16_t* from) {
  const auto* halves = reinterpret_cast<const __m128i*>(from);
  return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
inline __m256i rounded_to_bf16(__m256 value) {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i tie = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(tie, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 is_nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
  const __m256 chosen = _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(nan), is_nan);
  return _mm256_srli_epi32(_mm256_castps_si256(chosen), 16);
}
inline void store_bf16(std::uint16_t* to, F32 value) {
  const __m256i packed = _mm256_packus_epi32(rounded_to_bf16(value.low), rounded_to_bf16(value.high));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(packed, 0xd8));
}
inline __m256 dot2_halves(__m256 sums, __m256i a, __m256i b) {
  const __m256i odd = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  const __m256 odd_a = _mm256_castsi256_ps(_mm256_and_si256(a, odd));
  const __m256 odd_b = _mm256_castsi256_ps(_mm256_and_si256(b, odd));
  const __m256 even_a = _mm256_castsi256_ps(_mm256_slli_epi32(a, 16));
  const __m256 even_b = _mm256_castsi256_ps(_mm256_slli_epi32(b, 16));
  return _mm256_fmadd_ps(even_a, even_b, _mm256_fmadd_ps(odd_a, odd_b, sums));
}
inline F32 dot2(F32 sums, I32 a, I32 b) {
  return {dot2_halves(sums.low, a.low, b.low), dot2_halves(sums.high, a.high, b.high)};
}

}  // namespace forebay::lanes
