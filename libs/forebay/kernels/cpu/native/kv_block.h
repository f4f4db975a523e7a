// Keys and values as they lie in a block of the arena, in the order "layer_kv_head_paired":
//
//   [layer][key | value][kv_head], then
//   keys    [head_dim / 2][token][2]    16 tokens side by side: a score is summed without adding across lanes
//   values  [token / 2][head_dim][2]    16 dims side by side, two tokens each
//
// Both are read 16 pairs at a time. T = tokens of a block, a multiple of 16 that divides 256; H = head_dim, one of
// 16.
#pragma once

#include "functions.h"

namespace forebay {

struct KvShape {
  int block_tokens;
  int kv_heads;
  int head_dim;

  // Numbers from the start of a block to the keys of one head in one layer; the values lie value_offset() further.
  std::ptrdiff_t key_offset(int layer, int kv_head) const {
    return (std::ptrdiff_t{2} * layer * kv_heads + kv_head) * head_numbers();
  }
  std::ptrdiff_t value_offset() const { return kv_heads * head_numbers(); }
  std::ptrdiff_t head_numbers() const { return std::ptrdiff_t{block_tokens} * head_dim; }
};

// bf16 numbers; products are exact, sums are float32. Scores are in units of ln 2.
struct Bf16Numbers {
  using Number = std::uint16_t;
  static constexpr float kQueryScale = 1.44269504f;
  static lanes::F32 power(lanes::F32 score) { return short_power_of_two(score); }
  // 16 sums += 16 pairs . one pair
  static lanes::F32 add_products(lanes::F32 sums, const Number* pairs, const Number* pair) {
    return lanes::dot2(sums, lanes::load_words(pairs), lanes::broadcast_word(pair));
  }
  static void store(Number* to, lanes::F32 value) { lanes::store_bf16(to, value); }
};

// float32 numbers, for models that are to be computed exactly rather than fast.
struct F32Numbers {
  using Number = float;
  static constexpr float kQueryScale = 1.0f;
  static lanes::F32 power(lanes::F32 score) { return exponential(score); }
  static lanes::F32 add_products(lanes::F32 sums, const Number* pairs, const Number* pair) {
    using namespace lanes;
    float even[kCount], odd[kCount];
    for (int i = 0; i < kCount; ++i) {
      even[i] = pairs[2 * i];
      odd[i] = pairs[2 * i + 1];
    }
    sums = multiply_add(load(odd), broadcast(pair[1]), sums);
    return multiply_add(load(even), broadcast(pair[0]), sums);
  }
  static void store(Number* to, lanes::F32 value) { lanes::store(to, value); }
};

// Writes the key of one token. from: [head_dim].
template <class Number>
inline void write_key(Number* keys, const KvShape& shape, int token, const Number* from) {
  for (int pair = 0; pair < shape.head_dim / 2; ++pair) {
    std::memcpy(keys + 2 * (std::ptrdiff_t{pair} * shape.block_tokens + token), from + 2 * pair, 2 * sizeof(Number));
  }
}

// Writes the value of one token. is_last: nothing follows it in this step, so the other half of its pair is made
// zero: attention multiplies it by a probability of zero, which would not silence a NaN left there by another
// sequence.
template <class Number>
inline void write_value(Number* values, const KvShape& shape, int token, const Number* from, bool is_last) {
  Number* const to = values + std::ptrdiff_t{token / 2} * 2 * shape.head_dim;
  const int half = token % 2;
  for (int dim = 0; dim < shape.head_dim; ++dim) to[2 * dim + half] = from[dim];
  if (is_last && half == 0) {
    for (int dim = 0; dim < shape.head_dim; ++dim) to[2 * dim + 1] = Number{0};
  }
}

}  // namespace forebay
