// A decoder as the library sees it: shapes, and where its packed weights lie. It owns none of them.
#pragma once

#include <vector>

#include "kv_block.h"
#include "linear.h"

namespace forebay {

struct Layer {
  Linear query, key, value, output, gate, up, down;
  // Norm weights are padded with zeros to a multiple of 32; query_norm and key_norm ([head_dim]) may be null.
  const float* attention_norm = nullptr;
  const float* query_norm = nullptr;
  const float* key_norm = nullptr;
  const float* feed_forward_norm = nullptr;
};

struct Model {
  int hidden = 0;
  int intermediate = 0;
  int query_heads = 0;
  int vocabulary = 0;
  KvShape kv{};
  bool is_kv_float32 = false;  // else bf16
  float norm_epsilon = 0.0f;
  const float* inverse_frequencies = nullptr;  // [head_dim / 2]
  const float* final_norm = nullptr;
  Linear embedding, head;  // the same when they are tied
  std::vector<Layer> layers;

  int queries_per_kv_head() const { return query_heads / kv.kv_heads; }
  int query_width() const { return query_heads * kv.head_dim; }
  int kv_width() const { return kv.kv_heads * kv.head_dim; }
};

// Row `output` of a matrix, as floats: [inputs padded to 32].
inline void unpack_row(const Linear& linear, int output, float* to) {
  const std::uint8_t* const tile = linear.tile(output / kTileOutputs);
  const int lane = output % kTileOutputs, groups = linear.groups();
  const auto* scales =
      reinterpret_cast<const std::uint16_t*>(tile + static_cast<std::size_t>(groups) * quants_bytes(linear.format));
  for (int group = 0; group < groups; ++group, to += kGroup) {
    const std::uint8_t* const quants = tile + static_cast<std::size_t>(group) * quants_bytes(linear.format);
    float factor[lanes::kCount], least[lanes::kCount] = {};
    if (linear.format == Format::kQ4_1) {
      lanes::store(factor, lanes::load_halves(scales + 32 * group));
      lanes::store(least, lanes::load_halves(scales + 32 * group + 16));
    } else if (linear.format == Format::kQ4_0 || linear.format == Format::kQ8_0) {
      lanes::store(factor, lanes::load_halves(scales + 16 * group));
    }
    for (int k = 0; k < kGroup; ++k) {
      switch (linear.format) {
        case Format::kF32: std::memcpy(to + k, quants + 4 * (16 * k + lane), 4); break;
        case Format::kBf16: {
          std::uint32_t bits = 0;
          std::memcpy(&bits, quants + 2 * (32 * (k / 2) + 2 * lane + k % 2), 2);
          bits <<= 16;
          std::memcpy(to + k, &bits, 4);
          break;
        }
        case Format::kQ8_0: {
          const auto number = static_cast<float>(quants[64 * (k / 4) + 4 * lane + k % 4]);
          to[k] = factor[lane] * (number - 128.0f);
          break;
        }
        default: {
          const std::uint8_t both = quants[64 * (k % 16 / 4) + 4 * lane + k % 4];
          const auto number = static_cast<float>(k < 16 ? both & 15 : both >> 4);
          to[k] = linear.format == Format::kQ4_0 ? factor[lane] * (number - 8.0f) : factor[lane] * number + least[lane];
        }
      }
    }
  }
}

}  // namespace forebay
