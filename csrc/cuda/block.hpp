// What the CUDA kernels are written in: a block of threads as a loop over tasks.
//
// A kernel is a struct with kThreads and operator()(Block&). It never names a thread: it says `each(n, task)`, which
// is worked off by all threads of the block and ends with a barrier. So the same source runs on the host, one task
// after the other (`MFDMC_EMULATE`, compiled by the C++ compiler), and is compared there with the oracle. A kernel
// is right only if the tasks of one `each` do not depend on one another; the emulation runs them in ascending or
// descending order, with shared memory full of NaN, to bring to light where they do. What it cannot show: barriers,
// ballots and atomics of the device, limits of registers and shared memory, and the rounding of fused multiply-adds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/kernels.hpp"

#ifdef MFDMC_EMULATE
#include <vector>
#define MFDMC_DEVICE
#else
#include <cuda_runtime.h>
#define MFDMC_DEVICE __device__
#endif

namespace mfdmc::cuda {

constexpr int kLanes = 32;                   // of a warp
constexpr std::size_t kPlainShared = 48 << 10;  // bytes of shared memory that a block gets without asking

#ifndef MFDMC_EMULATE

MFDMC_DEVICE inline int count_bits(unsigned mask) { return __popc(mask); }
MFDMC_DEVICE inline int lowest_bit(unsigned mask) { return __ffs(mask) - 1; }

// A variable that each task of a phase has for itself from one phase to the next: in registers. The tasks are threads
// (`each_thread`) or lanes (`each` of at most kLanes).
template <typename T>
class Private {
 public:
  MFDMC_DEVICE T& at(int) { return value_; }

 private:
  T value_;
};

// 32 threads that work together; `each` ends with their barrier.
class Warp {
 public:
  template <typename Task>
  MFDMC_DEVICE void each(int n, Task task) const {
    for (int i = threadIdx.x % kLanes; i < n; i += kLanes) task(i);
    __syncwarp();
  }

  // Bit l is condition(l) for each of the lanes.
  template <typename Condition>
  MFDMC_DEVICE unsigned ballot(Condition condition) const {
    return __ballot_sync(0xffffffffu, condition(static_cast<int>(threadIdx.x % kLanes)));
  }
};

class Block {
 public:
  MFDMC_DEVICE explicit Block(unsigned char* shared) : shared_(shared) {}

  MFDMC_DEVICE std::int64_t index() const { return blockIdx.x; }
  MFDMC_DEVICE std::int64_t count() const { return gridDim.x; }

  // Shared memory from `offset` bytes on, a multiple of 16 for wide loads.
  template <typename T>
  MFDMC_DEVICE T* shared(std::size_t offset) const {
    return reinterpret_cast<T*>(shared_ + offset);
  }

  // task(i) for each i < n. All threads must get here with the same n.
  template <typename Task>
  MFDMC_DEVICE void each(int n, Task task) const {
    for (int i = threadIdx.x; i < n; i += blockDim.x) task(i);
    __syncthreads();
  }

  template <typename Task>
  MFDMC_DEVICE void each_thread(Task task) const {
    task(static_cast<int>(threadIdx.x));
    __syncthreads();
  }

  // task(warp, i) for each i < n, by a whole warp each.
  template <typename Task>
  MFDMC_DEVICE void each_warp(int n, Task task) const {
    for (int i = threadIdx.x / kLanes; i < n; i += blockDim.x / kLanes) task(Warp(), i);
    __syncthreads();
  }

  // The number of blocks that asked before, the same for all threads; `place` is in shared memory.
  MFDMC_DEVICE std::int32_t ticket(std::int32_t* counter, std::int32_t* place) const {
    if (threadIdx.x == 0) *place = atomicAdd(counter, 1);
    __syncthreads();
    return *place;
  }

  // Tells other blocks that this one is done with what it read so far. The threads' last `each` was a barrier, so their
  // reads are done; the fence keeps the flag behind them.
  MFDMC_DEVICE void raise_flag(std::int32_t* flag) const {
    if (threadIdx.x == 0) {
      __threadfence();
      atomicExch(flag, 1);
    }
  }

  // Waits until flags [first, last) are raised.
  MFDMC_DEVICE void wait_for(std::int32_t* flags, int first, int last) const {
    for (int i = first + threadIdx.x; i < last; i += blockDim.x)
      while (*reinterpret_cast<volatile std::int32_t*>(flags + i) == 0) __nanosleep(20);
    __threadfence();
    __syncthreads();
  }

 private:
  unsigned char* shared_;
};

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Makes a device the current one for a while. Torch has a runtime of its own, but both see the thread's one context.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceScope() { cudaSetDevice(before_); }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_ = 0;
};

// Threads at work on a multiprocessor: 64 registers for each. Left to itself, ptxas aims at more and spills.
constexpr int kWorking = 1024;

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, kWorking / Kernel::kThreads) run_kernel(const Kernel kernel) {
  extern __shared__ __align__(16) unsigned char shared[];
  Block block(shared);
  kernel(block);
}

// Starts `n_blocks` blocks of the kernel; returns at once.
template <typename Kernel>
void launch(const Kernel& kernel, std::int64_t n_blocks, std::size_t shared_bytes, Queue queue) {
  if (n_blocks == 0) return;
  const DeviceScope scope(queue.device);
  if (shared_bytes > kPlainShared)
    check(cudaFuncSetAttribute(run_kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          Kernel::kName);
  run_kernel<Kernel><<<static_cast<unsigned>(n_blocks), Kernel::kThreads, shared_bytes,
                       static_cast<cudaStream_t>(queue.stream)>>>(kernel);
  check(cudaGetLastError(), Kernel::kName);
}

#else  // the same on the host

inline bool descending_tasks = false;

template <typename Task>
void for_tasks(std::int64_t n, Task task) {
  for (std::int64_t i = 0; i < n; ++i) task(static_cast<int>(descending_tasks ? n - 1 - i : i));
}

inline int count_bits(unsigned mask) { return __builtin_popcount(mask); }
inline int lowest_bit(unsigned mask) { return __builtin_ctz(mask); }

template <typename T>
class Private {
 public:
  T& at(int task) { return values_[task]; }

 private:
  T values_[256];  // as many as there are threads in the largest block
};

class Warp {
 public:
  template <typename Task>
  void each(int n, Task task) const {
    for_tasks(n, task);
  }

  template <typename Condition>
  unsigned ballot(Condition condition) const {
    unsigned mask = 0;
    for (int lane = 0; lane < kLanes; ++lane) mask |= static_cast<unsigned>(condition(lane)) << lane;
    return mask;
  }
};

class Block {
 public:
  Block(std::int64_t index, std::int64_t count, int n_threads, std::size_t shared_bytes)
      : index_(index), count_(count), n_threads_(n_threads), shared_(shared_bytes / 16 + 1) {
    for (Sixteen& part : shared_)
      for (unsigned char& byte : part.bytes) byte = 0xff;  // a NaN as float, -1 as a whole number
  }

  std::int64_t index() const { return index_; }
  std::int64_t count() const { return count_; }

  template <typename T>
  T* shared(std::size_t offset) {
    return reinterpret_cast<T*>(shared_.data()->bytes + offset);
  }

  template <typename Task>
  void each(int n, Task task) const {
    for_tasks(n, task);
  }

  template <typename Task>
  void each_thread(Task task) const {
    for_tasks(n_threads_, task);
  }

  template <typename Task>
  void each_warp(int n, Task task) const {
    for_tasks(n, [&](int i) { task(Warp(), i); });
  }

  std::int32_t ticket(std::int32_t* counter, std::int32_t*) const { return (*counter)++; }
  void raise_flag(std::int32_t* flag) const { *flag = 1; }
  void wait_for(const std::int32_t* flags, int first, int last) const {
    for (int i = first; i < last; ++i)
      if (!flags[i]) throw std::logic_error("a block waits for one that has not started");
  }

 private:
  struct alignas(16) Sixteen {
    unsigned char bytes[16];
  };

  std::int64_t index_, count_;
  int n_threads_;
  std::vector<Sixteen> shared_;
};

template <typename Kernel>
void launch(const Kernel& kernel, std::int64_t n_blocks, std::size_t shared_bytes, Queue) {
  for_tasks(n_blocks, [&](int b) {
    Block block(b, n_blocks, Kernel::kThreads, shared_bytes);
    kernel(block);
  });
}

#endif

}  // namespace mfdmc::cuda
