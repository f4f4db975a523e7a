// The threads of one engine, and how they wait for each other.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace forebay {

// Waits for a condition that another thread brings about: spinning for a while (a spin is some 15 ns), then asleep. A
// thread that spun on would keep its core from the very thread it waits for, when other processes want the cores too.
class Patience {
 public:
  // Returns when is_done() is true. It must become true before notify() is called.
  template <class Condition>
  void wait_until(Condition is_done, int most_spins) {
    for (int spins = 0; spins < most_spins; ++spins) {
      if (is_done()) return;
      pause();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    wake_.wait(lock, is_done);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }
  void notify() {
    // Orders the change of the condition before the look at sleepers_; wait_until orders them the other way round.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
    { const std::lock_guard<std::mutex> lock(mutex_); }
    wake_.notify_all();
  }

 private:
  static void pause();
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

// Items first .. end - 1 of a phase.
struct Items {
  int first, end;
};

constexpr int kMeetingSpins = 2000;
constexpr int kWorkSpins = 6000;  // the caller's own work lies between two steps

// Threads meet here. The last to arrive clears the work counters, so that the next phase starts at its first items.
class Meeting {
 public:
  void open(int thread_count) {
    thread_count_ = thread_count;
    while (static_cast<int>(core_of_.size()) < thread_count) {
      core_of_.emplace_back(-1);
      taken_.emplace_back();
    }
    arrived_.store(0, std::memory_order_relaxed);
    clear_taken();
  }
  // Returns when all have arrived and the last of them has done `alone`.
  template <class Work>
  void wait(int thread, Work alone) {
    const std::uint32_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == thread_count_) {
      arrived_.store(0, std::memory_order_relaxed);
      clear_taken();
      alone();
      clear_taken();
      round_.store(round + 1, std::memory_order_release);
      if (thread_count_ > 1) patience_.notify();
    } else {
      const int spins = shares_core(thread) ? 0 : kMeetingSpins;
      patience_.wait_until([&] { return round_.load(std::memory_order_acquire) != round; }, spins);
    }
  }
  // The next `most` or fewer of `count` items that nobody has taken, none when all are. A thread is given neighbours in
  // its own part of the items, whose weights follow each other in memory, and then helps with the parts of the others.
  Items take(int thread, int count, int most) {
    for (int i = 0; i < thread_count_; ++i) {
      const int owner = thread + i < thread_count_ ? thread + i : thread + i - thread_count_;
      const int start = part_start(owner, count), end = part_start(owner + 1, count);
      Counter& taken = taken_[static_cast<std::size_t>(owner)];
      if (start + taken.value.load(std::memory_order_relaxed) >= end) continue;
      const int first = start + taken.value.fetch_add(most, std::memory_order_relaxed);
      if (first < end) return {first, first + most < end ? first + most : end};
    }
    return {0, 0};
  }
  // Where the part of a thread starts among so many items.
  int part_start(int thread, int count) const {
    return static_cast<int>(static_cast<std::int64_t>(count) * thread / thread_count_);
  }

 private:
  struct alignas(64) Counter {
    std::atomic<int> value{0};
  };
  void clear_taken() {
    for (Counter& taken : taken_) taken.value.store(0, std::memory_order_relaxed);
  }
  // Whether another of these threads was last seen on the core of this one: then it cannot arrive while this one
  // spins. It happens when other processes keep the other cores busy.
  bool shares_core(int thread);

  int thread_count_ = 1;
  std::deque<std::atomic<int>> core_of_;  // of each thread when it last waited
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> round_{0};
  std::deque<Counter> taken_;  // of each thread's part
  Patience patience_;
};

class Threads {
 public:
  // `count` includes the thread that calls run().
  explicit Threads(int count);
  ~Threads();
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  int count() const { return static_cast<int>(workers_.size()) + 1; }
  // Calls work(i) for i in 0 .. active_count - 1, each on a thread of its own; returns when all have returned.
  void run(int active_count, const std::function<void(int)>& work);

 private:
  void serve(int index);
  std::vector<std::thread> workers_;
  const std::function<void(int)>* work_ = nullptr;
  int active_count_ = 0;
  bool is_ending_ = false;
  alignas(64) std::atomic<std::uint32_t> job_{0};  // counts runs; work_, active_count_ and is_ending_ are set before
  alignas(64) std::atomic<int> pending_{0};
  Patience for_work_, for_the_others_;
};

}  // namespace forebay
