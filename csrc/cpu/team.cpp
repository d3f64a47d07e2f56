#include "cpu/team.hpp"

#include <algorithm>

#ifdef __unix__
#include <unistd.h>
#endif

namespace mfdmc {
namespace {

constexpr std::uint64_t kOne = 1, kEnd = (kOne << 21) - 1;  // of Share::bits

inline std::int64_t front_of(std::uint64_t bits) { return static_cast<std::int64_t>(bits & kEnd); }
inline std::int64_t back_of(std::uint64_t bits) { return static_cast<std::int64_t>(bits >> 21 & kEnd); }

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

Team::Team(int n_threads) : shares_(n_threads) {
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

bool Team::take(int member, std::int64_t& index) {
  const int members = size();
  for (int k = 0; k < members; ++k) {
    std::atomic<std::uint64_t>& share = shares_[(member + k) % members].bits;
    std::uint64_t bits = share.load(std::memory_order_acquire);
    while (front_of(bits) < back_of(bits)) {
      // one's own from the front, of others from the back, where they will not be for longest
      const std::uint64_t rest = k == 0 ? bits + 1 : bits - (kOne << 21);
      if (!share.compare_exchange_weak(bits, rest, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      index = first_ + (k == 0 ? front_of(bits) : back_of(bits) - 1);
      return true;
    }
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

void Team::run_shared(std::int64_t first, std::int64_t n, Call call, void* context) {
  first_ = first;
  n_ = n;
  call_ = call;
  context_ = context;
  done_ = 0;
  const std::uint32_t job = job_ + 1;
  for (int member = 0; member < size(); ++member) {
    const std::uint64_t front = n * member / size(), back = n * (member + 1) / size();
    // the number of the job keeps a slow exchange from mistaking this share for an earlier one
    shares_[member].bits = static_cast<std::uint64_t>(job) << 42 | back << 21 | front;
  }
  job_ = job;
  if (asleep_) {
    const std::lock_guard<std::mutex> lock(mutex_);
    work_there_.notify_all();
  }
  std::int64_t index;
  while (take(0, index)) {
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
  std::uint32_t seen = 0;
  const auto called = [this, &seen] { return job_ != seen || stop_; };
  while (true) {
    if (!spin(called)) {
      std::unique_lock<std::mutex> lock(mutex_);
      ++asleep_;
      work_there_.wait(lock, called);
      --asleep_;
    }
    if (stop_) return;
    seen = job_;
    std::int64_t index;
    while (take(member, index)) {
      call_(context_, index, member);
      finish_one();
    }
  }
}

}  // namespace mfdmc
