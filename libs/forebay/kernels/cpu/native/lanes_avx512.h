// Sixteen lanes in one 512-bit register: AVX-512 F, BW, DQ, VL, VNNI, BF16. See lanes.h.
#pragma once

#include <immintrin.h>

namespace forebay::lanes {

using F32 = __m512;
using I32 = __m512i;

inline F32 broadcast(float value) { return _mm512_set1_ps(value); }
inline F32 load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, F32 value) { _mm512_storeu_ps(to, value); }
inline F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
inline F32 subtract(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
inline F32 multiply(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
inline F32 divide(F32 a, F32 b) { return _mm512_div_ps(a, b); }
// a * b + c
inline F32 multiply_add(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
// a > b ? a : b, so that a NaN in b is kept.
inline F32 maximum(F32 a, F32 b) { return _mm512_max_ps(a, b); }
// a < b ? a : b, so that a NaN in b is kept.
inline F32 minimum(F32 a, F32 b) { return _mm512_min_ps(a, b); }
// The largest magnitude of all lanes of both; infinite or NaN if any of them is.
inline float largest_magnitude(F32 a, F32 b) {
  // Magnitudes are ordered as their bits are, infinity above all numbers and NaN above infinity.
  const __m512i bits_a = _mm512_castps_si512(_mm512_abs_ps(a)), bits_b = _mm512_castps_si512(_mm512_abs_ps(b));
  const std::int32_t bits = _mm512_reduce_max_epi32(_mm512_max_epi32(bits_a, bits_b));
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
inline float sum(F32 a) { return _mm512_reduce_add_ps(a); }
inline float largest(F32 a) { return _mm512_reduce_max_ps(a); }
// The first `count` lanes of a (all if count >= 16, none if count <= 0), `otherwise` in the rest.
inline F32 keep_first(F32 a, int count, float otherwise) {
  const int bounded = count < 0 ? 0 : (count > kCount ? kCount : count);
  const auto kept = static_cast<__mmask16>((1u << bounded) - 1u);
  return _mm512_mask_blend_ps(kept, _mm512_set1_ps(otherwise), a);
}

inline I32 broadcast_int(std::int32_t value) { return _mm512_set1_epi32(value); }
// The same four bytes in every lane.
inline I32 broadcast_word(const void* from) {
  std::int32_t word;
  std::memcpy(&word, from, sizeof word);
  return _mm512_set1_epi32(word);
}
inline I32 load_words(const void* from) { return _mm512_loadu_si512(from); }
inline void store_words(void* to, I32 words) { _mm512_storeu_si512(to, words); }
inline I32 add_ints(I32 a, I32 b) { return _mm512_add_epi32(a, b); }
inline I32 subtract_ints(I32 a, I32 b) { return _mm512_sub_epi32(a, b); }
inline I32 shift_left_8(I32 a) { return _mm512_slli_epi32(a, 8); }
// The sign is kept.
inline I32 shift_right_8(I32 a) { return _mm512_srai_epi32(a, 8); }
inline std::int32_t sum_ints(I32 a) { return _mm512_reduce_add_epi32(a); }
inline F32 to_float(I32 a) { return _mm512_cvtepi32_ps(a); }
// Nearest integer, ties to even.
inline I32 round_to_int(F32 a) { return _mm512_cvtps_epi32(a); }
// 2^a for -126 <= a <= 127.
inline F32 power_of_two(I32 a) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(a, _mm512_set1_epi32(127)), 23));
}
// a * 2^n where both a and the result are normal numbers.
inline F32 scale_by_power_of_two(F32 a, I32 n) {
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_slli_epi32(n, 23)));
}
// 16 integers to 16 bytes, saturated.
inline void store_bytes(std::int8_t* to, I32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtsepi32_epi8(a));
}
inline I32 low_nibbles(I32 a) { return _mm512_and_si512(a, _mm512_set1_epi8(0x0f)); }
inline I32 high_nibbles(I32 a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(0x0f)); }

// Adds to each lane the dot product of four unsigned with four signed bytes.
inline I32 dot4(I32 sums, I32 unsigned_bytes, I32 signed_bytes) {
  return _mm512_dpbusd_epi32(sums, unsigned_bytes, signed_bytes);
}
// The same where the unsigned bytes are below 16.
inline I32 dot4_nibbles(I32 sums, I32 nibbles, I32 signed_bytes) { return dot4(sums, nibbles, signed_bytes); }

// 16 IEEE halves as floats.
inline F32 load_halves(const std::uint16_t* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
// Nearest bf16, ties to even; subnormals become zero.
inline void store_bf16(std::uint16_t* to, F32 value) {
  const __m256bh rounded = _mm512_cvtneps_pbh(value);
  std::memcpy(to, &rounded, sizeof rounded);
}
// Adds to each lane the dot product of two pairs of bf16. The instruction rounds each of its two additions.
inline F32 dot2(F32 sums, I32 a, I32 b) {
  return _mm512_dpbf16_ps(sums, (__m512bh)a, (__m512bh)b);
}

}  // namespace forebay::lanes
