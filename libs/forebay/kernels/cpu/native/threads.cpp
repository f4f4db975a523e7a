#include "threads.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace forebay {

void Patience::pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

bool Meeting::shares_core(int thread) {
#if defined(__linux__)
  const int core = sched_getcpu();
  core_of_[static_cast<std::size_t>(thread)].store(core, std::memory_order_relaxed);
  for (int other = 0; other < thread_count_; ++other) {
    const int its_core = core_of_[static_cast<std::size_t>(other)].load(std::memory_order_relaxed);
    if (other != thread && its_core == core) return true;
  }
#endif
  return false;
}

Threads::Threads(int count) {
  for (int index = 1; index < count; ++index) workers_.emplace_back([this, index] { serve(index); });
}

Threads::~Threads() {
  is_ending_ = true;
  job_.fetch_add(1, std::memory_order_release);
  for_work_.notify();
  for (std::thread& worker : workers_) worker.join();
}

void Threads::run(int active_count, const std::function<void(int)>& work) {
  if (active_count == 1) return work(0);
  work_ = &work;
  active_count_ = active_count;
  // Every worker answers, active or not: none may still be reading this job when the next one is written.
  pending_.store(count() - 1, std::memory_order_relaxed);
  job_.fetch_add(1, std::memory_order_release);
  for_work_.notify();
  work(0);
  for_the_others_.wait_until([this] { return pending_.load(std::memory_order_acquire) == 0; }, kMeetingSpins);
}

void Threads::serve(int index) {
  for (std::uint32_t seen = 0;; ++seen) {
    for_work_.wait_until([&] { return job_.load(std::memory_order_acquire) != seen; }, kWorkSpins);
    if (is_ending_) return;
    if (index < active_count_) (*work_)(index);
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) for_the_others_.notify();
  }
}

}  // namespace forebay
