// A team of threads that shares out short tasks many thousand times a second.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace mfdmc {

// Why not OpenMP: at the end of each of its loops every thread must arrive, also one that the operating system has put
// aside, and those that wait keep their cores busy. On a machine with other work that makes training many times slower.
// Here a loop ends when its tasks are done, whoever did them, and who waits for longer than some microseconds sleeps.
//
// Every member begins with a share of its own, the same one in every loop of the same length, and helps with the ends of
// other shares only when it is through. So what a task left in the cache is met again by the member whose cache it is;
// where processors have no cache in common, it would have to come from the other one.
class Team {
 public:
  explicit Team(int n_threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // The team of the calling thread with that many members, itself included; kept until the thread ends.
  static Team& mine(int n_threads);

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(index, member) for each index below n once and returns when all are done. Member m of M, the caller being
  // number 0, begins with the indices from n m / M on. A task must not throw, nor use the team.
  template <typename Task>
  void run(std::int64_t n, Task&& task) {
    if (workers_.empty() || n < 2) {
      for (std::int64_t index = 0; index < n; ++index) task(index, 0);
      return;
    }
    const Call call = [](void* context, std::int64_t index, int member) {
      (*static_cast<std::remove_reference_t<Task>*>(context))(index, member);
    };
    for (std::int64_t first = 0; first < n; first += kMostTasks)
      run_shared(first, n - first < kMostTasks ? n - first : kMostTasks, call,
                 const_cast<void*>(static_cast<const void*>(&task)));
  }

 private:
  using Call = void (*)(void* context, std::int64_t index, int member);

  static constexpr std::int64_t kMostTasks = 1 << 20;  // at once

  // The tasks of a member that nobody has taken, [front, back), and the job they belong to; in a cache line of its own.
  struct alignas(64) Share {
    std::atomic<std::uint64_t> bits{0};  // job 22 bits, back 21, front 21
  };

  void run_shared(std::int64_t first, std::int64_t n, Call call, void* context);
  void work(int member);
  bool take(int member, std::int64_t& index);
  void finish_one();

  // Who holds a task holds off the next job, so what belongs to a job is safe to read from then on.
  std::vector<Share> shares_;  // [members]
  std::int64_t first_ = 0, n_ = 0;
  Call call_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<std::uint32_t> job_{0};  // number of the latest job
  alignas(64) std::atomic<std::int64_t> done_{0};

  std::atomic<int> asleep_{0};  // workers
  std::atomic<bool> caller_asleep_{false}, stop_{false};
  std::mutex mutex_;
  std::condition_variable work_there_, all_done_;
  std::vector<std::thread> workers_;
};

}  // namespace mfdmc
