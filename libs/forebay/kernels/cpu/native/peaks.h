// What this machine can do at most: the bounds that a step's time is compared with.
#pragma once

#include <cstddef>
#include <cstdint>

namespace forebay {

enum class Arithmetic : int { kF32 = 0, kBf16 = 1, kInt8 = 2 };

// Multiplications and additions per second of `thread_count` threads that do nothing else, from registers, for about
// `seconds`.
double arithmetic_peak(Arithmetic kind, int thread_count, double seconds);

// Bytes per second that `thread_count` threads read, each its part of `size` bytes, once. Give more than the caches
// hold.
double read_peak(const std::uint8_t* bytes, std::size_t size, int thread_count);

}  // namespace forebay
