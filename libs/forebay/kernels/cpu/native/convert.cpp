#include "convert.h"

#include <algorithm>
#include <type_traits>
#include <vector>

namespace forebay {

using namespace kv_numbers;

namespace {

template <class Number>
Number get(const std::uint8_t* from, std::ptrdiff_t index) {
  Number number;
  std::memcpy(&number, from + index * static_cast<std::ptrdiff_t>(sizeof number), sizeof number);
  return number;
}

template <class Number>
void put(std::uint8_t* to, std::ptrdiff_t index, Number number) {
  std::memcpy(to + index * static_cast<std::ptrdiff_t>(sizeof number), &number, sizeof number);
}

// Tokens first_token .. of one head's keys or values in a block.
struct Part {
  int layer, is_value, head, first_token, token_count;

  std::ptrdiff_t matrix(const BlockLayout& layout) const {
    return (std::ptrdiff_t{2} * layer + is_value) * layout.kv_heads;
  }
  // In numbers from the start of the block.
  std::ptrdiff_t head_start(const BlockLayout& layout) const {
    return (matrix(layout) + head) * layout.block_tokens * layout.head_dim;
  }
  std::ptrdiff_t row_start(const BlockLayout& layout) const {
    if (layout.order == AxisOrder::kHeadToken) {
      return head_start(layout) + std::ptrdiff_t{first_token} * layout.head_dim;
    }
    return (matrix(layout) * layout.block_tokens + std::ptrdiff_t{first_token} * layout.kv_heads + head) *
           layout.head_dim;
  }
  std::ptrdiff_t row_step(const BlockLayout& layout) const {
    return layout.order == AxisOrder::kTokenHead ? std::ptrdiff_t{layout.kv_heads} * layout.head_dim : layout.head_dim;
  }
  std::size_t scale_start(const BlockLayout& layout) const {
    const std::ptrdiff_t row = (matrix(layout) + head) * layout.block_tokens + first_token;
    return layout.scale_offset() + 4 * static_cast<std::size_t>(row);
  }
};

// Rows of head_dim numbers, step bytes apart.
template <class Byte>
struct Rows {
  Byte* first;
  std::ptrdiff_t step;
};

constexpr int kTilePairs = 8;  // of a transposition: what one cache line of rows takes

// Two numbers that stay beside each other.
template <class Raw>
struct Pair {
  Raw even, odd;
};

template <class Raw>
void gather_pairs(const BlockLayout& layout, const Part& part, const std::uint8_t* head, std::uint8_t* rows) {
  const int dims = layout.head_dim, tokens = layout.block_tokens, first = part.first_token;
  if (part.is_value) {
    for (int t = 0; t < part.token_count; ++t) {
      const std::uint8_t* const from = head + std::ptrdiff_t{(first + t) / 2} * 2 * dims * std::ptrdiff_t{sizeof(Raw)};
      std::uint8_t* const to = rows + std::ptrdiff_t{t} * dims * std::ptrdiff_t{sizeof(Raw)};
      const int half = (first + t) % 2;
      for (int d = 0; d < dims; ++d) put<Raw>(to, d, get<Raw>(from, 2 * d + half));
    }
    return;
  }
  for (int start = 0; start < dims / 2; start += kTilePairs) {
    const int end = std::min(start + kTilePairs, dims / 2);
    for (int t = 0; t < part.token_count; ++t) {
      for (int p = start; p < end; ++p) {
        const auto pair = get<Pair<Raw>>(head, std::ptrdiff_t{p} * tokens + first + t);
        put(rows, std::ptrdiff_t{t} * (dims / 2) + p, pair);
      }
    }
  }
}

template <class Raw>
void scatter_pairs(const BlockLayout& layout, const Part& part, const std::uint8_t* rows, std::uint8_t* head) {
  const int dims = layout.head_dim, tokens = layout.block_tokens, first = part.first_token;
  if (part.is_value) {
    for (int t = 0; t < part.token_count; ++t) {
      const std::uint8_t* const from = rows + std::ptrdiff_t{t} * dims * std::ptrdiff_t{sizeof(Raw)};
      std::uint8_t* const to = head + std::ptrdiff_t{(first + t) / 2} * 2 * dims * std::ptrdiff_t{sizeof(Raw)};
      const int half = (first + t) % 2;
      for (int d = 0; d < dims; ++d) put<Raw>(to, 2 * d + half, get<Raw>(from, d));
    }
    return;
  }
  for (int start = 0; start < dims / 2; start += kTilePairs) {
    const int end = std::min(start + kTilePairs, dims / 2);
    for (int t = 0; t < part.token_count; ++t) {
      for (int p = start; p < end; ++p) {
        const auto pair = get<Pair<Raw>>(rows, std::ptrdiff_t{t} * (dims / 2) + p);
        put(head, std::ptrdiff_t{p} * tokens + first + t, pair);
      }
    }
  }
}

// scale: of the source's row, where it has one. Returns the scale of the target's, where it has one.
template <class From, class To>
float convert_row(const std::uint8_t* from, float scale, int dims, float* wide, std::uint8_t* to) {
  if constexpr (std::is_same_v<From, To>) {
    std::memcpy(to, from, static_cast<std::size_t>(dims) * sizeof(typename From::Raw));
    return scale;
  } else {
    if constexpr (std::is_same_v<From, Int8>) {
      for (int d = 0; d < dims; ++d) wide[d] = integer_of(from[d]) * scale;
    } else {
      for (int d = 0; d < dims; ++d) wide[d] = From::decode(get<typename From::Raw>(from, d));
    }
    if constexpr (std::is_same_v<To, Int8>) {
      return encode_int8(wide, dims, to);
    } else {
      for (int d = 0; d < dims; ++d) put<typename To::Raw>(to, d, To::encode(wide[d]));
      return 0.0f;
    }
  }
}

// Where a conversion keeps rows that do not lie as such in a block.
struct Scratch {
  std::vector<std::uint8_t> from, to;
  std::vector<float> wide;  // one row
};

template <class From, class To>
void convert_part(const BlockLayout& source, const Part& read, const std::uint8_t* source_block,
                  const BlockLayout& target, const Part& write, std::uint8_t* target_block, Scratch& scratch) {
  using FromRaw = typename From::Raw;
  using ToRaw = typename To::Raw;
  constexpr std::ptrdiff_t from_bytes = sizeof(FromRaw), to_bytes = sizeof(ToRaw);
  const int dims = source.head_dim;
  Rows<const std::uint8_t> from{scratch.from.data(), dims * from_bytes};
  Rows<std::uint8_t> to{scratch.to.data(), dims * to_bytes};
  if (source.order == AxisOrder::kHeadPaired) {
    gather_pairs<FromRaw>(source, read, source_block + read.head_start(source) * from_bytes, scratch.from.data());
  } else {
    from = {source_block + read.row_start(source) * from_bytes, read.row_step(source) * from_bytes};
  }
  if (target.order != AxisOrder::kHeadPaired) {
    to = {target_block + write.row_start(target) * to_bytes, write.row_step(target) * to_bytes};
  }
  const std::uint8_t* const source_scales = source_block + read.scale_start(source);
  std::uint8_t* const target_scales = target_block + write.scale_start(target);
  for (int t = 0; t < read.token_count; ++t) {
    float scale = 0.0f;
    if constexpr (std::is_same_v<From, Int8>) scale = get<float>(source_scales, t);
    scale = convert_row<From, To>(from.first + t * from.step, scale, dims, scratch.wide.data(), to.first + t * to.step);
    if constexpr (std::is_same_v<To, Int8>) put(target_scales, t, scale);
  }
  if (target.order == AxisOrder::kHeadPaired) {
    scatter_pairs<ToRaw>(target, write, scratch.to.data(), target_block + write.head_start(target) * to_bytes);
  }
}

using ConvertPart = decltype(&convert_part<Float32, Float32>);

template <class From>
ConvertPart part_function_from(Dtype to) {
  switch (to) {
    case Dtype::kFloat32: return convert_part<From, Float32>;
    case Dtype::kBfloat16: return convert_part<From, Bfloat16>;
    case Dtype::kFloat16: return convert_part<From, Float16>;
    case Dtype::kFloat8E4m3: return convert_part<From, Float8E4m3>;
    case Dtype::kInt8: break;
  }
  return convert_part<From, Int8>;
}

ConvertPart part_function(Dtype from, Dtype to) {
  switch (from) {
    case Dtype::kFloat32: return part_function_from<Float32>(to);
    case Dtype::kBfloat16: return part_function_from<Bfloat16>(to);
    case Dtype::kFloat16: return part_function_from<Float16>(to);
    case Dtype::kFloat8E4m3: return part_function_from<Float8E4m3>(to);
    case Dtype::kInt8: break;
  }
  return part_function_from<Int8>(to);
}

// What nothing is written to otherwise: tokens that a last block has not, and what lies before the scales.
void clear_rest(const BlockLayout& layout, bool is_partly_filled, std::uint8_t* block) {
  if (is_partly_filled) {
    std::memset(block, 0, layout.block_bytes());
  } else if (layout.has_scales()) {
    std::memset(block + layout.data_bytes(), 0, layout.scale_offset() - layout.data_bytes());
  }
}

}  // namespace

std::size_t BlockLayout::number_bytes() const {
  switch (dtype) {
    case Dtype::kFloat32: return 4;
    case Dtype::kBfloat16:
    case Dtype::kFloat16: return 2;
    case Dtype::kFloat8E4m3:
    case Dtype::kInt8: break;
  }
  return 1;
}

void convert(const Conversion& conversion) {
  const BlockLayout& target = conversion.target;
  const int source_tokens = conversion.sources[0].block_tokens;
  const int step = std::min(source_tokens, target.block_tokens);
  const int source_blocks = (conversion.token_count + source_tokens - 1) / source_tokens;
  const ConvertPart part_of = part_function(conversion.sources[0].dtype, target.dtype);
  Scratch scratch;
  scratch.from.resize(static_cast<std::size_t>(step) * target.head_dim * conversion.sources[0].number_bytes());
  scratch.to.resize(static_cast<std::size_t>(step) * target.head_dim * target.number_bytes());
  scratch.wide.resize(static_cast<std::size_t>(target.head_dim));
  for (int token = 0; token < conversion.token_count; token += step) {
    std::uint8_t* const target_block = conversion.target_blocks[token / target.block_tokens];
    const int left = conversion.token_count - token;
    if (token % target.block_tokens == 0) clear_rest(target, left < target.block_tokens, target_block);
    for (int matrix = 0; matrix < 2 * target.layers; ++matrix) {
      for (int i = 0; i < conversion.head_read_count; ++i) {
        const HeadRead& heads = conversion.head_reads[i];
        const std::uint8_t* const source_block =
            conversion.source_blocks[heads.source * source_blocks + token / source_tokens];
        Part read{matrix / 2, matrix % 2, heads.first_source_head, token % source_tokens, std::min(step, left)};
        Part write{matrix / 2, matrix % 2, heads.first_target_head, token % target.block_tokens, read.token_count};
        for (int h = 0; h < heads.head_count; ++h, ++read.head, ++write.head) {
          part_of(conversion.sources[heads.source], read, source_block, target, write, target_block, scratch);
        }
      }
    }
  }
}

}  // namespace forebay
