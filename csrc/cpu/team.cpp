#include "cpu/team.hpp"

#include <algorithm>

#ifdef __unix__
#include <unistd.h>
#endif

namespace mfdmc {
namespace {

constexpr std::uint64_t kLeft = 0xFFFFFFFFu;  // of job_: tasks that nobody has taken
// some tens of microseconds, about as long as one thread of a team works alone between two jobs
constexpr int kSpins = 2000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits a little for a condition; false if it has not come true.
template <typename Condition>
bool spin(Condition condition) {
  for (int i = 0; i < kSpins; ++i) {
    if (condition()) return true;
    pause();
  }
  return false;
}

}  // namespace

Team::Team(int n_threads) {
  for (int member = 1; member < n_threads; ++member) workers_.emplace_back([this, member] { work(member); });
}

Team::~Team() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  work_there_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

Team& Team::mine(int n_threads) {
  thread_local std::unique_ptr<Team> team;
#ifdef __unix__
  thread_local pid_t owner = 0;
  if (owner != getpid()) {
    // after a fork the other threads of the parent do not exist: their handles must not even be destroyed
    if (owner) (void)team.release();
    owner = getpid();
  }
#endif
  n_threads = std::max(1, n_threads);
  if (!team || team->size() != n_threads) {
    team.reset();
    team = std::make_unique<Team>(n_threads);
  }
  return *team;
}

bool Team::take(std::int64_t& index) {
  std::uint64_t job = job_.load(std::memory_order_acquire);
  while (job & kLeft)
    if (job_.compare_exchange_weak(job, job - 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
      index = n_ - static_cast<std::int64_t>(job & kLeft);
      return true;
    }
  return false;
}

void Team::finish_one() {
  const std::int64_t n = n_;  // the next job may begin as soon as the last task counts as done
  if (done_.fetch_add(1) + 1 == n && caller_asleep_) {
    const std::lock_guard<std::mutex> lock(mutex_);
    all_done_.notify_one();
  }
}

void Team::run_shared(std::int64_t n, Call call, void* context) {
  n_ = n;
  call_ = call;
  context_ = context;
  done_ = 0;
  const std::uint64_t number = (job_.load() >> 32) + 1;
  job_ = (number << 32) | static_cast<std::uint64_t>(n);
  if (asleep_) {
    const std::lock_guard<std::mutex> lock(mutex_);
    work_there_.notify_all();
  }
  std::int64_t index;
  while (take(index)) {
    call(context, index, 0);
    finish_one();
  }
  const auto finished = [this, n] { return done_.load() == n; };
  if (spin(finished)) return;
  std::unique_lock<std::mutex> lock(mutex_);
  caller_asleep_ = true;
  all_done_.wait(lock, finished);
  caller_asleep_ = false;
}

void Team::work(int member) {
  const auto called = [this] { return (job_.load() & kLeft) != 0 || stop_.load(); };
  while (true) {
    if (!spin(called)) {
      std::unique_lock<std::mutex> lock(mutex_);
      ++asleep_;
      work_there_.wait(lock, called);
      --asleep_;
    }
    if (stop_) return;
    std::int64_t index;
    while (take(index)) {
      call_(context_, index, member);
      finish_one();
    }
  }
}

}  // namespace mfdmc
