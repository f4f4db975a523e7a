// Linear layers over packed weights: y[row][n] = sum over k of w[n][k] * x[row][k].
//
// Weights lie in tiles of 16 outputs (all K inputs of 16 rows of the matrix), so that a register holds the same four
// inputs of 16 outputs. Layout of one tile, G = groups of 32 inputs; padded to 64 bytes:
//
//   kQ4_1  [G][4][16][4] bytes, low nibble inputs 0..15 of the group, high 16..31    | [G] 16 scales f16, 16 minima f16
//   kQ4_0  [G][4][16][4] bytes as above                                              | [G] 16 scales f16
//   kQ8_0  [G][8][16][4] bytes, each number plus 128                                 | [G] 16 scales f16
//   kBf16  [G][16][16][2] bf16
//   kF32   [G][32][16] f32
//
// The numbers are those of the model file, bit for bit. One output is always summed in the same order, group by
// group, whatever the panel's width and whoever shares it.
#pragma once

#include "panels.h"

namespace forebay {

enum class Format : int { kF32 = 0, kBf16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ8_0 = 4 };
constexpr int kTileOutputs = 16;


// Bytes of quantised numbers and of scales that 16 outputs x 32 inputs take.
inline std::size_t quants_bytes(Format format) {
  switch (format) {
    case Format::kF32: return 2048;
    case Format::kBf16: return 1024;
    case Format::kQ8_0: return 512;
    default: return 256;
  }
}
inline std::size_t scales_bytes(Format format) {
  switch (format) {
    case Format::kQ4_1: return 64;
    case Format::kQ4_0:
    case Format::kQ8_0: return 32;
    default: return 0;
  }
}
inline std::size_t tile_bytes(Format format, int groups) {
  const std::size_t bytes = static_cast<std::size_t>(groups) * (quants_bytes(format) + scales_bytes(format));
  return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
}

// One weight matrix: [outputs][inputs], in tiles.
struct Linear {
  const std::uint8_t* tiles = nullptr;
  const float* bias = nullptr;  // [outputs padded to 16], or null
  Format format = Format::kF32;
  int outputs = 0;
  int inputs = 0;
  bool has_wide_inputs = false;  // blocks of integers: inputs of 16 bits instead of 8

  int tile_count() const { return (outputs + kTileOutputs - 1) / kTileOutputs; }
  int groups() const { return groups_of(inputs); }
  Encoding encoding() const {
    if (format == Format::kF32) return Encoding::kF32;
    if (format == Format::kBf16) return Encoding::kBf16;
    return has_wide_inputs ? Encoding::kInt16 : Encoding::kInt8;
  }
  const std::uint8_t* tile(int index) const {
    return tiles + static_cast<std::size_t>(index) * tile_bytes(format, groups());
  }
};

// Whether the next tile is fetched from memory while one is computed, and to which cache: the first, or the second when
// tiles of another matrix are computed in between, which would not leave it there.
enum class Fetch { kNot, kNear, kFar };

// Where 16 outputs of each row of a panel go: row i of the panel to first + i * row_stride.
struct TileOutput {
  float* first;
  std::ptrdiff_t row_stride;
  bool is_added;               // to what is there (a residual) instead of replacing it
  const float* bias = nullptr;  // [16] or null
  Fetch fetch = Fetch::kNear;
};

namespace tile_kernels {

using namespace lanes;

template <int Width>
inline void finish(const F32 (&sums)[Width], const TileOutput& out) {
#pragma GCC unroll lanes::kUnroll
  for (int row = 0; row < Width; ++row) {
    float* const to = out.first + row * out.row_stride;
    F32 value = sums[row];
    if (out.bias != nullptr) value = add(value, load(out.bias));
    if (out.is_added) value = add(load(to), value);
    store(to, value);
  }
}

template <Format kFormat>
inline void unpack(const std::uint8_t* quants, I32 (&words)[8]) {
  if constexpr (kFormat == Format::kQ8_0) {
#pragma GCC unroll lanes::kUnroll
    for (int i = 0; i < 8; ++i) words[i] = load_words(quants + 64 * i);
  } else {
#pragma GCC unroll lanes::kUnroll
    for (int i = 0; i < 4; ++i) {
      const I32 both = load_words(quants + 64 * i);
      words[i] = low_nibbles(both);
      words[i + 4] = high_nibbles(both);
    }
  }
}

// The integer sum that makes up for the offset of unsigned weights: -offset * sum of the inputs.
template <Format kFormat>
inline I32 offset_sum(const std::uint8_t* input_sum) {
  if constexpr (kFormat == Format::kQ4_1) return broadcast_int(0);
  std::int32_t total;
  std::memcpy(&total, input_sum, sizeof total);
  return broadcast_int(kFormat == Format::kQ4_0 ? -8 * total : -128 * total);
}

inline F32 broadcast_float(const std::uint8_t* from) {
  float value;
  std::memcpy(&value, from, sizeof value);
  return broadcast(value);
}

// With few rows a step is bound by reading weights: while one tile is computed, the same group of the next is fetched.
template <Format kFormat>
inline void prefetch_next(const std::uint8_t* next_tile, int group, Fetch fetch) {
  constexpr int kBytes = kFormat == Format::kQ8_0 ? 544 : kFormat == Format::kQ4_1 ? 320 : 288;
  const std::uint8_t* const from = next_tile + static_cast<std::ptrdiff_t>(group) * kBytes;
  if (fetch == Fetch::kNear) {
    for (int i = 0; i < (kBytes + 63) / 64; ++i) __builtin_prefetch(from + 64 * i, 0, 3);
  } else {
    for (int i = 0; i < (kBytes + 63) / 64; ++i) __builtin_prefetch(from + 64 * i, 0, 2);
  }
}

// Adds to `sums` the products of a group's weights with 32 bytes of one row. In two chains, since each product waits for
// the one before it; integers, so the order does not matter.
template <Format kFormat>
inline I32 dot_plane(I32 sums, const I32 (&words)[8], const std::uint8_t* bytes, int width) {
  const auto dot = [&](I32 to, int word) {
    const I32 inputs = broadcast_word(bytes + 4 * word * width);
    return kFormat == Format::kQ8_0 ? dot4(to, words[word], inputs) : dot4_nibbles(to, words[word], inputs);
  };
  I32 others = broadcast_int(0);
#pragma GCC unroll lanes::kUnroll
  for (int word = 0; word < 4; ++word) {
    sums = dot(sums, word);
    others = dot(others, word + 4);
  }
  return add_ints(sums, others);
}

// Weights of 4 or 8 bits times activations of 8 bits, or of 16 in two planes: exact integer sums within a group, floats
// between groups.
template <Format kFormat, int Width, int Planes>
void integer_tile(const std::uint8_t* tile, int groups, const std::uint8_t* records, const TileOutput& out) {
  constexpr std::size_t kQuants = kFormat == Format::kQ8_0 ? 512 : 256;
  constexpr int kScales = kFormat == Format::kQ4_1 ? 32 : 16;
  constexpr std::ptrdiff_t kPlane = 32 * Width, kRecord = Planes * kPlane + 12 * Width;
  const std::uint8_t* quants = tile;
  const auto* scales = reinterpret_cast<const std::uint16_t*>(tile + static_cast<std::size_t>(groups) * kQuants);
  const std::size_t next = tile_bytes(kFormat, groups);
  F32 sums[Width];
#pragma GCC unroll lanes::kUnroll
  for (int row = 0; row < Width; ++row) sums[row] = broadcast(0.0f);
  for (int group = 0; group < groups; ++group, quants += kQuants, scales += kScales, records += kRecord) {
    if (out.fetch != Fetch::kNot) prefetch_next<kFormat>(tile + next, group, out.fetch);
    I32 words[8];
    unpack<kFormat>(quants, words);
    const F32 scale = load_halves(scales);
    [[maybe_unused]] F32 least = scale;
    if constexpr (kFormat == Format::kQ4_1) least = load_halves(scales + 16);
#pragma GCC unroll lanes::kUnroll
    for (int row = 0; row < Width; ++row) {
      const std::uint8_t* const bytes = records + 4 * row;
      const std::uint8_t* const row_scales = bytes + Planes * kPlane;
      I32 dot = offset_sum<kFormat>(row_scales + 8 * Width);
      dot = dot_plane<kFormat>(dot, words, bytes + (Planes - 1) * kPlane, Width);
      if constexpr (Planes == 2) {
        dot = add_ints(dot, shift_left_8(dot_plane<kFormat>(broadcast_int(0), words, bytes, Width)));
      }
      const F32 scales_of_both = multiply(scale, broadcast_float(row_scales));
      sums[row] = multiply_add(to_float(dot), scales_of_both, sums[row]);
      if constexpr (kFormat == Format::kQ4_1) {
        sums[row] = multiply_add(least, broadcast_float(row_scales + 4 * Width), sums[row]);
      }
    }
  }
  finish<Width>(sums, out);
}

template <int Width>
void bf16_tile(const std::uint8_t* tile, int groups, const std::uint8_t* records, const TileOutput& out) {
  F32 sums[Width];
  for (int row = 0; row < Width; ++row) sums[row] = broadcast(0.0f);
  for (int pair = 0; pair < groups * 16; ++pair, tile += 64, records += 4 * Width) {
    const I32 weights = load_words(tile);
#pragma GCC unroll lanes::kUnroll
    for (int row = 0; row < Width; ++row) sums[row] = dot2(sums[row], weights, broadcast_word(records + 4 * row));
  }
  finish<Width>(sums, out);
}

template <int Width>
void f32_tile(const std::uint8_t* tile, int groups, const std::uint8_t* records, const TileOutput& out) {
  F32 sums[Width];
  for (int row = 0; row < Width; ++row) sums[row] = broadcast(0.0f);
  for (int input = 0; input < groups * kGroup; ++input, tile += 64, records += 4 * Width) {
    const F32 weights = load(reinterpret_cast<const float*>(tile));
#pragma GCC unroll lanes::kUnroll
    for (int row = 0; row < Width; ++row) {
      sums[row] = multiply_add(weights, broadcast_float(records + 4 * row), sums[row]);
    }
  }
  finish<Width>(sums, out);
}

template <Format kFormat, int Width>
void integer_tile(bool has_wide_inputs, const std::uint8_t* tile, int groups, const std::uint8_t* records,
                  const TileOutput& out) {
  if (has_wide_inputs) return integer_tile<kFormat, Width, 2>(tile, groups, records, out);
  return integer_tile<kFormat, Width, 1>(tile, groups, records, out);
}

template <int Width>
void tile_of_width(const Linear& linear, const std::uint8_t* tile, const std::uint8_t* records, const TileOutput& out) {
  const bool is_wide = linear.has_wide_inputs;
  const int groups = linear.groups();
  switch (linear.format) {
    case Format::kQ4_1: return integer_tile<Format::kQ4_1, Width>(is_wide, tile, groups, records, out);
    case Format::kQ4_0: return integer_tile<Format::kQ4_0, Width>(is_wide, tile, groups, records, out);
    case Format::kQ8_0: return integer_tile<Format::kQ8_0, Width>(is_wide, tile, groups, records, out);
    case Format::kBf16: return bf16_tile<Width>(tile, groups, records, out);
    case Format::kF32: return f32_tile<Width>(tile, groups, records, out);
  }
}

}  // namespace tile_kernels

// Computes tile `index` of a linear layer for one panel.
inline void linear_tile(const Linear& linear, int index, Activations& inputs, const Panel& panel, TileOutput out) {
  const std::uint8_t* const tile = linear.tile(index);
  const std::uint8_t* const records = inputs.record(panel, 0);
  if (linear.bias != nullptr) out.bias = linear.bias + index * kTileOutputs;
  if (panel.first_row > 0) out.fetch = Fetch::kNot;  // tiles are in the cache since the first panel
  switch (panel.width) {
    case 16: return tile_kernels::tile_of_width<16>(linear, tile, records, out);
    case 8: return tile_kernels::tile_of_width<8>(linear, tile, records, out);
    case 4: return tile_kernels::tile_of_width<4>(linear, tile, records, out);
    case 2: return tile_kernels::tile_of_width<2>(linear, tile, records, out);
    default: return tile_kernels::tile_of_width<1>(linear, tile, records, out);
  }
}

}  // namespace forebay
