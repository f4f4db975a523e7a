#include "peaks.h"

#include <atomic>
#include <chrono>

#include "lanes.h"
#include "threads.h"

namespace forebay {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kChains = 16;      // independent sums: enough to hide the latency of each
constexpr int kRepeats = 4096;

std::atomic<float> sink{0.0f};   // so that nothing is computed for nobody

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// kRepeats * kChains vector operations.
float compute(Arithmetic kind) {
  using namespace lanes;
  if (kind == Arithmetic::kInt8) {
    I32 sums[kChains];
    for (I32& sum : sums) sum = broadcast_int(0);
    const I32 a = broadcast_int(0x01010101), b = broadcast_int(static_cast<std::int32_t>(sink.load()) + 1);
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
#pragma GCC unroll lanes::kUnroll
      for (int chain = 0; chain < kChains; ++chain) sums[chain] = dot4(sums[chain], a, b);
    }
    I32 total = broadcast_int(0);
    for (const I32& sum : sums) total = add_ints(total, sum);
    return static_cast<float>(sum_ints(total));
  }
  F32 sums[kChains];
  for (F32& sum : sums) sum = broadcast(0.0f);
  const I32 pair = broadcast_int(0x3f803f80 + static_cast<std::int32_t>(sink.load()));
  const F32 one = broadcast(1.0f + sink.load());
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
#pragma GCC unroll lanes::kUnroll
    for (int chain = 0; chain < kChains; ++chain) {
      sums[chain] = kind == Arithmetic::kBf16 ? dot2(sums[chain], pair, pair) : multiply_add(one, one, sums[chain]);
    }
  }
  F32 total = broadcast(0.0f);
  for (const F32& part : sums) total = add(total, part);
  return sum(total);
}

}  // namespace

double arithmetic_peak(Arithmetic kind, int thread_count, double seconds) {
  const double products_per_lane = kind == Arithmetic::kInt8 ? 4.0 : (kind == Arithmetic::kBf16 ? 2.0 : 1.0);
  std::atomic<std::int64_t> rounds{0};
  Threads threads(thread_count);
  const auto start = Clock::now();
  threads.run(thread_count, [&](int) {
    while (seconds_since(start) < seconds) {
      if (compute(kind) < 0.0f) sink.store(0.0f);
      rounds.fetch_add(1);
    }
  });
  const double operations = 2.0 * products_per_lane * lanes::kCount * kChains * kRepeats;
  return operations * static_cast<double>(rounds.load()) / seconds_since(start);
}

double read_peak(const std::uint8_t* bytes, std::size_t size, int thread_count) {
  Threads threads(thread_count);
  const std::size_t part = size / static_cast<std::size_t>(thread_count) / 256 * 256;
  const auto start = Clock::now();
  threads.run(thread_count, [&](int thread) {
    const std::uint8_t* from = bytes + part * static_cast<std::size_t>(thread);
    lanes::I32 sums[4] = {lanes::broadcast_int(0), lanes::broadcast_int(0), lanes::broadcast_int(0),
                          lanes::broadcast_int(0)};
    for (std::size_t i = 0; i < part; i += 256) {
      __builtin_prefetch(from + i + 4096);
      __builtin_prefetch(from + i + 4096 + 64);
      __builtin_prefetch(from + i + 4096 + 128);
      __builtin_prefetch(from + i + 4096 + 192);
      for (int j = 0; j < 4; ++j) {
        // Unsigned bytes times zero: reads the line without the risk of an overflow.
        sums[j] = lanes::dot4(sums[j], lanes::load_words(from + i + 64 * static_cast<std::size_t>(j)), sums[3]);
      }
    }
    for (const lanes::I32& one : sums) {
      if (lanes::sum_ints(one) < 0) sink.store(0.0f);
    }
  });
  return static_cast<double>(part * static_cast<std::size_t>(thread_count)) / seconds_since(start);
}

}  // namespace forebay
