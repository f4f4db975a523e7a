// The threads of one engine. They wait for work by spinning for some 50 microseconds, then asleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace forebay {

// Threads meet here. The last to arrive clears the work counter, so that the next phase starts at its first item.
class Meeting {
 public:
  void open(int thread_count) {
    thread_count_ = thread_count;
    arrived_.store(0, std::memory_order_relaxed);
    taken_.store(0, std::memory_order_relaxed);
  }
  // Returns when all have arrived. Gives the core away after a while: the other thread may need this very core.
  void wait();
  // The first of the next `count` items that nobody has taken.
  int take(int count) { return taken_.fetch_add(count, std::memory_order_relaxed); }

 private:
  int thread_count_ = 1;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> round_{0};
  alignas(64) std::atomic<int> taken_{0};
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
  bool is_job_new(std::uint32_t seen) const { return job_.load(std::memory_order_acquire) != seen; }

  std::vector<std::thread> workers_;
  const std::function<void(int)>* work_ = nullptr;
  int active_count_ = 0;
  bool is_ending_ = false;
  alignas(64) std::atomic<std::uint32_t> job_{0};  // counts runs; work_, active_count_ and is_ending_ are set before
  alignas(64) std::atomic<int> pending_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int> sleepers_{0};
};

}  // namespace forebay
