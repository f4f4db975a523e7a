#include "threads.h"

#include <chrono>

namespace forebay {
namespace {

constexpr auto kSpin = std::chrono::microseconds(50);
constexpr int kSpinsBeforeYield = 2000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Spins until `is_done`, now and then giving the core away.
template <class Condition>
void spin_until(Condition is_done) {
  for (int spins = 0; !is_done(); ++spins) {
    if (spins < kSpinsBeforeYield) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace

void Meeting::wait() {
  const std::uint32_t round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == thread_count_) {
    arrived_.store(0, std::memory_order_relaxed);
    taken_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
  } else {
    spin_until([&] { return round_.load(std::memory_order_acquire) != round; });
  }
}

Threads::Threads(int count) {
  for (int index = 1; index < count; ++index) workers_.emplace_back([this, index] { serve(index); });
}

Threads::~Threads() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_ending_ = true;
    job_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Threads::run(int active_count, const std::function<void(int)>& work) {
  if (active_count > 1) {
    work_ = &work;
    active_count_ = active_count;
    // Every worker answers, active or not: none may still be reading this job when the next one is written.
    pending_.store(count() - 1, std::memory_order_relaxed);
    job_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      const std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
  }
  work(0);
  if (active_count > 1) {
    spin_until([&] { return pending_.load(std::memory_order_acquire) == 0; });
  }
}

void Threads::serve(int index) {
  std::uint32_t seen = 0;
  for (;;) {
    const auto asleep_after = std::chrono::steady_clock::now() + kSpin;
    while (!is_job_new(seen) && std::chrono::steady_clock::now() < asleep_after) pause();
    if (!is_job_new(seen)) {
      std::unique_lock<std::mutex> lock(mutex_);
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return is_job_new(seen); });
      sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }
    ++seen;
    if (is_ending_) return;
    if (index < active_count_) (*work_)(index);
    pending_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace forebay
