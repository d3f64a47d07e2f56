#include "cpu/shared_rings.hpp"

#include <poll.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <string>
#include <thread>
#include <utility>

namespace mfdmc {
namespace {

// attempts in which a process waits at work, then lets others work, and then sleeps; of which every so many look at
// whether the others are there
constexpr std::int64_t kSpins = 4000, kYields = 200, kLook = 512;
constexpr std::chrono::microseconds kSleep{20};

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

std::int64_t SharedRings::size(int n_processes, std::int64_t capacity) {
  return n_processes * n_processes * (static_cast<std::int64_t>(sizeof(Ring)) + capacity);
}

SharedRings::SharedRings(char* memory, std::int64_t capacity, int rank, std::vector<int> ends,
                         std::function<void()> check)
    : memory_(memory),
      capacity_(capacity),
      rank_(rank),
      n_processes_(static_cast<int>(ends.size())),
      ends_(std::move(ends)),
      check_(std::move(check)) {}

SharedRings::Ring& SharedRings::ring(int from, int to) const {
  const std::int64_t each = static_cast<std::int64_t>(sizeof(Ring)) + capacity_;
  return *reinterpret_cast<Ring*>(memory_ + (from * n_processes_ + to) * each);
}

std::int64_t SharedRings::put(Ring& ring, const char* from, std::int64_t n) const {
  const std::uint64_t written = ring.written.load(std::memory_order_relaxed);
  const std::int64_t held = static_cast<std::int64_t>(written - ring.read.load(std::memory_order_acquire));
  n = std::min(n, capacity_ - held);
  if (n <= 0) return 0;
  const std::int64_t at = static_cast<std::int64_t>(written % capacity_), straight = std::min(n, capacity_ - at);
  std::memcpy(ring.bytes() + at, from, straight);
  std::memcpy(ring.bytes(), from + straight, n - straight);
  ring.written.store(written + n, std::memory_order_release);
  return n;
}

std::int64_t SharedRings::take(Ring& ring, char* to, std::int64_t n) const {
  const std::uint64_t read = ring.read.load(std::memory_order_relaxed);
  n = std::min(n, static_cast<std::int64_t>(ring.written.load(std::memory_order_acquire) - read));
  if (n <= 0) return 0;
  const std::int64_t at = static_cast<std::int64_t>(read % capacity_), straight = std::min(n, capacity_ - at);
  std::memcpy(to, ring.bytes() + at, straight);
  std::memcpy(to + straight, ring.bytes(), n - straight);
  ring.read.store(read + n, std::memory_order_release);
  return n;
}

int SharedRings::wait(std::int64_t attempt) const {
  if (attempt < kSpins) {
    pause();
    return -1;
  }
  if (attempt < kSpins + kYields) {
    sched_yield();
    return -1;
  }
  std::this_thread::sleep_for(kSleep);
  if (attempt % kLook) return -1;
  check_();
  for (int r = 0; r < n_processes_; ++r) {
    pollfd end{ends_[r], POLLIN, 0};
    if (r != rank_ && ::poll(&end, 1, 0) > 0) return r;
  }
  return -1;
}

void SharedRings::swap(const Exchange::Messages& sent, Exchange::Messages& received) {
  // what is left of the messages to and from each process
  std::vector<std::pair<const char*, std::int64_t>> to_send;
  std::vector<std::pair<char*, std::int64_t>> to_receive;
  const char* from = sent.bytes.data();
  char* to = received.bytes.data();
  std::int64_t left = 0;
  for (int r = 0; r < n_processes_; ++r) {
    to_send.emplace_back(from, sent.sizes[r]);
    to_receive.emplace_back(to, received.sizes[r]);
    from += sent.sizes[r];
    to += received.sizes[r];
    left += sent.sizes[r] + received.sizes[r];
  }
  const std::int64_t own = sent.sizes[rank_];
  if (own) std::memcpy(to_receive[rank_].first, to_send[rank_].first, own);
  left -= 2 * own;
  int ended = -1;
  for (std::int64_t attempt = 0; left;) {
    std::int64_t moved = 0;
    for (int r = 0; r < n_processes_; ++r) {
      if (r == rank_) continue;
      auto& [data, n] = to_send[r];
      const std::int64_t put_now = n ? put(ring(rank_, r), data, n) : 0;
      data += put_now;
      n -= put_now;
      auto& [place, wanted] = to_receive[r];
      const std::int64_t taken = wanted ? take(ring(r, rank_), place, wanted) : 0;
      place += taken;
      wanted -= taken;
      moved += put_now + taken;
    }
    left -= moved;
    if (moved) {
      attempt = 0;
      ended = -1;
      continue;
    }
    // what a process wrote before it ended has come by now
    if (ended >= 0 && (to_send[ended].second || to_receive[ended].second))
      throw PeerEnded("process " + std::to_string(ended) + " has ended");
    ended = wait(attempt++);
  }
}

}  // namespace mfdmc
