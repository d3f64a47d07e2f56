// Memory that begins at a cache line.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace mfdmc {

// A vector register is as wide as a cache line with AVX-512: where arrays begin elsewhere, every load and store of one
// touches two lines.
template <typename T>
struct CacheLines {
  using value_type = T;
  static constexpr std::align_val_t kAlignment{64};

  CacheLines() = default;
  template <typename U>
  CacheLines(const CacheLines<U>&) {}

  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kAlignment)); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, kAlignment); }

  friend bool operator==(const CacheLines&, const CacheLines&) { return true; }
  friend bool operator!=(const CacheLines&, const CacheLines&) { return false; }
};

template <typename T>
using AlignedVector = std::vector<T, CacheLines<T>>;

}  // namespace mfdmc
