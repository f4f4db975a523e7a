// Aligned working memory that only grows: a step of a size seen before allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace forebay {

constexpr std::size_t kCacheLine = 64;

// Sizes are products of ints that need not fit an int.
inline std::size_t product(int a, int b) { return static_cast<std::size_t>(a) * static_cast<std::size_t>(b); }

class AlignedBytes {
 public:
  AlignedBytes() = default;
  AlignedBytes(const AlignedBytes&) = delete;
  AlignedBytes& operator=(const AlignedBytes&) = delete;
  ~AlignedBytes() { release(); }

  // Makes room for `size` bytes; what was there is lost when it grows.
  void reserve(std::size_t size) {
    if (size <= size_) return;
    release();
    data_ = static_cast<std::uint8_t*>(::operator new(size, std::align_val_t{kCacheLine}));
    size_ = size;
  }
  std::uint8_t* data() { return data_; }
  std::size_t size() const { return size_; }

 private:
  void release() {
    if (data_ != nullptr) ::operator delete(data_, std::align_val_t{kCacheLine});
    data_ = nullptr;
    size_ = 0;
  }
  std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
};

template <class Number>
class AlignedArray {
 public:
  void reserve(std::size_t count) { bytes_.reserve(count * sizeof(Number)); }
  Number* data() { return reinterpret_cast<Number*>(bytes_.data()); }
  std::size_t size_bytes() const { return bytes_.size(); }

 private:
  AlignedBytes bytes_;
};

}  // namespace forebay
