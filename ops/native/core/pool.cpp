#include "pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace natten {
namespace {

constexpr std::chrono::microseconds kLookAround{50};

class Pool {
 public:
  // Never destroyed: a helper may still sleep on the condition when the process ends.
  static Pool& shared() {
    static Pool& pool = *new Pool(thread_count() - 1);
    return pool;
  }

  // Helpers that sleep begin to look around.
  void expect() {
    {
      std::lock_guard lock(mutex_);
      expected_.fetch_add(1, std::memory_order_relaxed);
    }
    wake_.notify_all();
  }

  void run(int count, const std::function<void(int)>& body) {
    std::unique_lock one_loop(loop_, std::try_to_lock);
    if (!one_loop || helpers_ == 0 || count < 2) {
      for (int i = 0; i < count; ++i) body(i);
      return;
    }
    open(count, body);
    work(0);
    close();
    if (error_) std::rethrow_exception(error_);
  }

 private:
  // The indices that one thread begins with.
  struct alignas(64) Share {
    std::atomic<int> next{0};
    int end = 0;
  };

  explicit Pool(int helpers) : helpers_(helpers), shares_(helpers + 1) {
    for (int i = 1; i <= helpers; ++i) std::thread([this, i] { help(i); }).detach();
  }

  // A thread's share first, then what is left of the others'. Neighbouring indices write to
  // neighbouring memory, and a loop like the last one finds it in the caches of the same threads.
  void work(int thread) {
    try {
      for (int n = 0; n <= helpers_; ++n) {
        Share& share = shares_[(thread + n) % (helpers_ + 1)];
        for (int i; (i = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;) {
          (*body_)(i);
        }
      }
    } catch (...) {
      std::lock_guard lock(mutex_);
      error_ = std::current_exception();
      for (Share& share : shares_) share.next.store(share.end, std::memory_order_relaxed);
    }
  }

  void open(int count, const std::function<void(int)>& body) {
    {
      std::lock_guard lock(mutex_);
      body_ = &body;
      error_ = nullptr;
      for (int64_t i = 0, n = helpers_ + 1; i < n; ++i) {
        shares_[i].next.store(count * i / n, std::memory_order_relaxed);
        shares_[i].end = count * (i + 1) / n;
      }
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

  void help(int thread) {
    for (unsigned seen = 0;;) {
      wait_for_ticket(seen);
      {
        std::lock_guard lock(mutex_);
        seen = ticket_.load(std::memory_order_relaxed);
        if (!open_) continue;
        active_.fetch_add(1, std::memory_order_relaxed);
      }
      work(thread);
      active_.fetch_sub(1, std::memory_order_release);
    }
  }

  // Calls of a model follow each other closely, so a helper looks around before it sleeps. It
  // yields, because the thread that asks for the next call may be waiting for this very processor.
  void wait_for_ticket(unsigned seen) {
    using Clock = std::chrono::steady_clock;
    for (;;) {
      const unsigned expected = expected_.load(std::memory_order_relaxed);
      for (auto end = Clock::now() + kLookAround; Clock::now() < end; std::this_thread::yield()) {
        if (ticket_.load(std::memory_order_acquire) != seen) return;
      }
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] {
        return ticket_.load(std::memory_order_relaxed) != seen ||
               expected_.load(std::memory_order_relaxed) != expected;
      });
    }
  }

  const int helpers_;
  std::mutex loop_, mutex_;
  std::condition_variable wake_;
  std::atomic<unsigned> ticket_{0}, expected_{0};
  std::atomic<int> active_{0};
  bool open_ = false;
  const std::function<void(int)>* body_ = nullptr;
  std::vector<Share> shares_;
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

void expect_work() { Pool::shared().expect(); }

void parallel_for(int count, const std::function<void(int)>& body) {
  Pool::shared().run(count, body);
}

}  // namespace natten
