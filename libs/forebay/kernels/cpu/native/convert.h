// Blocks of one KV layout into blocks of another. What may be converted into what is decided in kv/conversion.py.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kv_numbers.h"

namespace forebay {

enum class AxisOrder : int { kHeadToken = 0, kTokenHead = 1, kHeadPaired = 2 };

// One block: [layer][key | value], then by order
//   kHeadToken   [kv_head][token][head_dim]
//   kTokenHead   [token][kv_head][head_dim]
//   kHeadPaired  [kv_head], then keys [head_dim / 2][token][2], values [token / 2][head_dim][2]
// and behind the numbers of kInt8, from a multiple of 4 on, float scales [layer][key | value][kv_head][token].
struct BlockLayout {
  kv_numbers::Dtype dtype;
  AxisOrder order;
  int layers, kv_heads, head_dim, block_tokens;

  std::size_t number_bytes() const;
  std::size_t row_count() const { return std::size_t{2} * layers * kv_heads * block_tokens; }
  std::size_t data_bytes() const { return row_count() * head_dim * number_bytes(); }
  std::size_t scale_offset() const { return (data_bytes() + 3) / 4 * 4; }
  bool has_scales() const { return dtype == kv_numbers::Dtype::kInt8; }
  std::size_t block_bytes() const { return has_scales() ? scale_offset() + 4 * row_count() : data_bytes(); }
};

// Heads first_target_head .. of the target are heads first_source_head .. of that source.
struct HeadRead {
  int source, first_source_head, first_target_head, head_count;
};

struct Conversion {
  const BlockLayout* sources;
  BlockLayout target;
  const HeadRead* head_reads;
  int head_read_count;
  int token_count;  // of the run; what the target's last block has room for beyond them becomes zeros
  const std::uint8_t* const* source_blocks;  // [source][block of the run]
  std::uint8_t* const* target_blocks;        // [block of the run]
};

// Blocks may lie at any address. Throws std::bad_alloc.
void convert(const Conversion& conversion);

}  // namespace forebay
