// Messages between processes of one machine through memory that they share.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <vector>

#include "cpu/exchange.hpp"

namespace mfdmc {

// A process that the others wait for has ended.
struct PeerEnded : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A ring of bytes from every process to every other one. Sockets would cost several times the work of a step, and a
// thread that serves them would want the core that the step is made on.
class SharedRings {
 public:
  // Bytes of memory for n processes with rings of `capacity` bytes, a multiple of 64; they are 0 before the first one
  // begins.
  static std::int64_t size(int n_processes, std::int64_t capacity);

  // `ends`: for every process a file descriptor that becomes readable when it ends (pidfd), -1 for this one. `check` is
  // called now and then while this process waits, and may throw.
  SharedRings(char* memory, std::int64_t capacity, int rank, std::vector<int> ends, std::function<void()> check);

  // As Exchange::Swap; throws PeerEnded.
  void swap(const Exchange::Messages& sent, Exchange::Messages& received);

 private:
  struct Ring {
    alignas(64) std::atomic<std::uint64_t> written;  // bytes since the beginning
    alignas(64) std::atomic<std::uint64_t> read;
    // the bytes follow
    char* bytes() { return reinterpret_cast<char*>(this) + sizeof(Ring); }
  };
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

  Ring& ring(int from, int to) const;
  std::int64_t put(Ring& ring, const char* from, std::int64_t n) const;
  std::int64_t take(Ring& ring, char* to, std::int64_t n) const;
  // Waits a little, longer the more often that was in vain. Returns the rank of a process that has ended, or -1.
  int wait(std::int64_t attempt) const;

  char* memory_;
  std::int64_t capacity_;
  int rank_, n_processes_;
  std::vector<int> ends_;
  std::function<void()> check_;
};

}  // namespace mfdmc
