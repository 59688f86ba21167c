#include "pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>

namespace natten {
namespace {

class Pool {
 public:
  // Never destroyed: a helper may still sleep on the condition when the process ends.
  static Pool& shared() {
    static Pool& pool = *new Pool(thread_count() - 1);
    return pool;
  }

  void run(int count, const std::function<void(int)>& body) {
    std::unique_lock one_loop(loop_, std::try_to_lock);
    if (!one_loop || helpers_ == 0 || count < 2) {
      for (int i = 0; i < count; ++i) body(i);
      return;
    }
    open(count, body);
    work();
    close();
    if (error_) std::rethrow_exception(error_);
  }

 private:
  explicit Pool(int helpers) : helpers_(helpers) {
    for (int i = 0; i < helpers; ++i) std::thread([this] { help(); }).detach();
  }

  void work() {
    try {
      for (int i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) (*body_)(i);
    } catch (...) {
      std::lock_guard lock(mutex_);
      error_ = std::current_exception();
      next_.store(count_, std::memory_order_relaxed);
    }
  }

  void open(int count, const std::function<void(int)>& body) {
    {
      std::lock_guard lock(mutex_);
      body_ = &body;
      count_ = count;
      error_ = nullptr;
      next_.store(0, std::memory_order_relaxed);
      open_ = true;
      ticket_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }

  // Waits for helpers that took part; one that wakes up late finds the loop closed.
  void close() {
    {
      std::lock_guard lock(mutex_);
      open_ = false;
    }
    while (active_.load(std::memory_order_acquire) > 0) std::this_thread::yield();
  }

  void help() {
    for (unsigned seen = 0;;) {
      wait_for_ticket(seen);
      {
        std::lock_guard lock(mutex_);
        seen = ticket_.load(std::memory_order_relaxed);
        if (!open_) continue;
        active_.fetch_add(1, std::memory_order_relaxed);
      }
      work();
      active_.fetch_sub(1, std::memory_order_release);
    }
  }

  // Calls of a model follow each other closely, so a helper looks around before it sleeps.
  void wait_for_ticket(unsigned seen) {
    using Clock = std::chrono::steady_clock;
    for (auto end = Clock::now() + std::chrono::microseconds(50); Clock::now() < end;) {
      if (ticket_.load(std::memory_order_acquire) != seen) return;
    }
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] { return ticket_.load(std::memory_order_relaxed) != seen; });
  }

  const int helpers_;
  std::mutex loop_, mutex_;
  std::condition_variable wake_;
  std::atomic<unsigned> ticket_{0};
  std::atomic<int> next_{0}, active_{0};
  bool open_ = false;
  const std::function<void(int)>* body_ = nullptr;
  int count_ = 0;
  std::exception_ptr error_;
};

int wanted_threads() {
  if (const char* text = std::getenv("NATTEN_ZOO_THREADS")) {
    if (int n = std::atoi(text); n > 0) return n;
  }
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

int thread_count() {
  static const int count = wanted_threads();
  return count;
}

void parallel_for(int count, const std::function<void(int)>& body) {
  Pool::shared().run(count, body);
}

}  // namespace natten
