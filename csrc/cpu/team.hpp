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
// aside, and those that wait keep their cores busy. On a machine with other work that makes training ten times slower.
// Here a loop ends when its tasks are done, whoever did them, and who waits for longer than some microseconds sleeps.
class Team {
 public:
  explicit Team(int n_threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // The team of the calling thread with that many members, itself included; kept until the thread ends.
  static Team& mine(int n_threads);

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(index, member) for each index below n < 2^32 once, started in ascending order, and returns when all are done.
  // Members are numbered from 0, the caller. A task must not throw, nor use the team.
  template <typename Task>
  void run(std::int64_t n, Task&& task) {
    if (workers_.empty() || n < 2) {
      for (std::int64_t index = 0; index < n; ++index) task(index, 0);
      return;
    }
    run_shared(n, [](void* context, std::int64_t index, int member) {
      (*static_cast<std::remove_reference_t<Task>*>(context))(index, member);
    }, const_cast<void*>(static_cast<const void*>(&task)));
  }

 private:
  using Call = void (*)(void* context, std::int64_t index, int member);

  void run_shared(std::int64_t n, Call call, void* context);
  void work(int member);
  bool take(std::int64_t& index);
  void finish_one();

  // Who holds an index holds off the next job, so what belongs to a job is safe to read from then on.
  std::atomic<std::uint64_t> job_{0};  // number of the job, 32 bits; tasks that nobody has taken, 32 bits
  std::atomic<std::int64_t> done_{0};
  std::int64_t n_ = 0;
  Call call_ = nullptr;
  void* context_ = nullptr;

  std::atomic<int> asleep_{0};  // workers
  std::atomic<bool> caller_asleep_{false}, stop_{false};
  std::mutex mutex_;
  std::condition_variable work_there_, all_done_;
  std::vector<std::thread> workers_;
};

}  // namespace mfdmc
