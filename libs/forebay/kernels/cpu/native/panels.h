// How the rows of a step (one per token) are grouped, and how their activations are written down for a linear layer.
//
// Rows are cut into panels of 16, then 8, 4, 2, 1. A linear kernel computes one tile of 16 outputs for one panel,
// with the panel's sums in registers. Inside a panel the numbers of all its rows for the same inputs lie side by
// side:
//
//   record(panel, group) holds 32 inputs of `width` rows:
//     kInt8   [8][width][4] int8 | [width] scale f32 | [width] scale * sum f32 | [width] sum i32
//     kInt16  as kInt8 with two planes: [8][width][4] high bytes | [8][width][4] low bytes | ...
//     kBf16   [16][width][2] bf16
//     kF32    [32][width] f32
//
// Groups are 32 consecutive inputs, the group of GGUF's 4- and 8-bit blocks; inputs are padded with zeros to whole
// groups.
#pragma once

#include <vector>

#include "lanes.h"
#include "memory.h"

namespace forebay {

constexpr int kGroup = 32;
constexpr int kMaxPanelWidth = 16;
constexpr float kLargestFinite = 3.40282347e38f;
constexpr float kSmallest = 1e-30f;  // smaller numbers count as zero: dividing by them would overflow

struct Panel {
  int first_row;
  int width;
};

inline int groups_of(int inputs) { return (inputs + kGroup - 1) / kGroup; }
inline int padded(int count, int multiple) { return (count + multiple - 1) / multiple * multiple; }

// Panels of `row_count` rows, and the panel of each row.
struct Panels {
  std::vector<Panel> list;
  std::vector<int> of_row;

  void cut(int row_count) {
    list.clear();
    of_row.resize(static_cast<std::size_t>(row_count));
    int width = kMaxPanelWidth;
    for (int row = 0; row < row_count; row += width) {
      while (width > row_count - row) width /= 2;
      for (int i = 0; i < width; ++i) of_row[static_cast<std::size_t>(row + i)] = static_cast<int>(list.size());
      list.push_back({row, width});
    }
  }
  const Panel& holding(int row) const { return list[static_cast<std::size_t>(of_row[static_cast<std::size_t>(row)])]; }
};

// A number of kInt16 is 256 * high + low, both signed: two byte products then give what one of 16 bits would.
enum class Encoding : int { kInt8 = 0, kInt16 = 1, kBf16 = 2, kF32 = 3 };
constexpr int kEncodings = 4;

inline std::size_t group_bytes(Encoding encoding) {
  constexpr std::size_t kBytes[kEncodings] = {44, 76, 64, 128};
  return kBytes[static_cast<std::size_t>(encoding)];
}

// Encoded activations: [row_count][inputs] in the record order above.
class Activations {
 public:
  void reserve(Encoding encoding, int row_count, int inputs) {
    encoding_ = encoding;
    groups_ = groups_of(inputs);
    bytes_.reserve(static_cast<std::size_t>(row_count) * static_cast<std::size_t>(groups_) * group_bytes(encoding));
  }
  int groups() const { return groups_; }
  std::size_t size_bytes() const { return bytes_.size(); }
  std::uint8_t* record(const Panel& panel, int group) {
    const std::size_t rows_before = static_cast<std::size_t>(panel.first_row) * static_cast<std::size_t>(groups_);
    const std::size_t in_panel = static_cast<std::size_t>(group) * static_cast<std::size_t>(panel.width);
    return bytes_.data() + (rows_before + in_panel) * group_bytes(encoding_);
  }

  // Writes inputs 32 * group .. + 31 of one row, given in two parts of 16.
  void encode(const Panel& panel, int row, int group, lanes::F32 first, lanes::F32 second) {
    std::uint8_t* const to = record(panel, group);
    const int width = panel.width, lane = row - panel.first_row;
    switch (encoding_) {
      case Encoding::kInt8: return encode_integers<1>(to, width, lane, first, second);
      case Encoding::kInt16: return encode_integers<2>(to, width, lane, first, second);
      case Encoding::kBf16: return encode_bf16(to, width, lane, first, second);
      case Encoding::kF32: return encode_f32(to, width, lane, first, second);
    }
  }

 private:
  // The largest magnitude becomes 127, or 127 * 256. The sum is that of the rounded numbers: the error of rounding then
  // cancels between the products and the zero point (the sum of the true numbers gives 4 times the KL).
  template <int Planes>
  static void encode_integers(std::uint8_t* to, int width, int lane, lanes::F32 first, lanes::F32 second) {
    using namespace lanes;
    constexpr float kMost = Planes == 1 ? 127.0f : 127.0f * 256.0f;
    float most = largest_magnitude(first, second);
    float scale = most / kMost;
    if (!(most <= kLargestFinite)) {  // makes every output of the row a NaN
      first = second = broadcast(0.0f);
      most = 0.0f;
      scale = __builtin_nanf("");
    }
    const F32 inverse = broadcast(most > kSmallest ? kMost / most : 0.0f);
    const I32 one = round_to_int(multiply(first, inverse)), other = round_to_int(multiply(second, inverse));
    const std::int32_t total = sum_ints(add_ints(one, other));
    if constexpr (Planes == 1) {
      store_plane(to, width, lane, one, other);
    } else {
      const I32 one_high = high_byte(one), other_high = high_byte(other);
      store_plane(to, width, lane, one_high, other_high);
      store_plane(to + 32 * width, width, lane, low_byte(one, one_high), low_byte(other, other_high));
    }
    const float scaled_sum = scale * static_cast<float>(total);
    std::uint8_t* const scales = to + Planes * 32 * width + 4 * lane;
    std::memcpy(scales, &scale, 4);
    std::memcpy(scales + 4 * width, &scaled_sum, 4);
    std::memcpy(scales + 8 * width, &total, 4);
  }

  // n = 256 * high + low with low in -128 .. 127.
  static lanes::I32 high_byte(lanes::I32 n) { return lanes::shift_right_8(lanes::add_ints(n, lanes::broadcast_int(128))); }
  static lanes::I32 low_byte(lanes::I32 n, lanes::I32 high) {
    return lanes::subtract_ints(n, lanes::shift_left_8(high));
  }
  static void store_plane(std::uint8_t* to, int width, int lane, lanes::I32 first, lanes::I32 second) {
    std::int8_t bytes[kGroup];
    lanes::store_bytes(bytes, first);
    lanes::store_bytes(bytes + lanes::kCount, second);
    for (int word = 0; word < 8; ++word) std::memcpy(to + 4 * (word * width + lane), bytes + 4 * word, 4);
  }

  static void encode_bf16(std::uint8_t* to, int width, int lane, lanes::F32 first, lanes::F32 second) {
    std::uint16_t rounded[kGroup];
    lanes::store_bf16(rounded, first);
    lanes::store_bf16(rounded + lanes::kCount, second);
    for (int pair = 0; pair < 16; ++pair) std::memcpy(to + 4 * (pair * width + lane), rounded + 2 * pair, 4);
  }

  static void encode_f32(std::uint8_t* to, int width, int lane, lanes::F32 first, lanes::F32 second) {
    float plain[kGroup];
    lanes::store(plain, first);
    lanes::store(plain + lanes::kCount, second);
    for (int i = 0; i < kGroup; ++i) std::memcpy(to + 4 * (i * width + lane), plain + i, 4);
  }

  Encoding encoding_ = Encoding::kInt8;
  int groups_ = 0;
  AlignedBytes bytes_;
};

}  // namespace forebay
