// What Python says of the other processes that train a model together.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "cpu/exchange.hpp"
#include "cpu/shared_rings.hpp"

namespace mfdmc::bindings {

// Rings in memory that an array holds.
struct PyRings {
  Array<std::uint8_t> memory;
  std::vector<int> ends;  // closed with this
  SharedRings rings;

  PyRings(Array<std::uint8_t> memory_, std::int64_t capacity, int rank, std::vector<int> ends_)
      : memory(std::move(memory_)),
        ends(std::move(ends_)),
        rings(reinterpret_cast<char*>(memory.mutable_data()), capacity, rank, ends, [] {
          py::gil_scoped_acquire acquire;
          if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        }) {
    const int n = static_cast<int>(ends.size());
    if (rank < 0 || rank >= n || capacity < 64 || capacity % 64 || memory.size() != SharedRings::size(n, capacity))
      throw py::value_error("the memory must be that of rings between the processes");
  }
  PyRings(const PyRings&) = delete;
  ~PyRings() {
    for (const int end : ends)
      if (end >= 0) ::close(end);
  }
};

// What one of several processes has of the training.
struct Share {
  int rank, n_processes;
  std::int64_t first, total;  // number of its first rating among all, and of all
  py::object all_to_all;      // (sent [bytes], their sizes by rank, received [bytes], their sizes by rank)
  py::object rings;           // SharedRings to be used in its place, or None

  Exchange::Swap swap() const {
    if (!rings.is_none()) {
      SharedRings& shared = rings.cast<PyRings&>().rings;
      return [kept = rings, &shared](const Exchange::Messages& sent, Exchange::Messages& received) {
        shared.swap(sent, received);
      };
    }
    return [call = all_to_all](const Exchange::Messages& sent, Exchange::Messages& received) {
      py::gil_scoped_acquire acquire;
      const auto bytes = [](const Exchange::Messages& messages) {
        const std::int64_t size = std::accumulate(messages.sizes.begin(), messages.sizes.end(), std::int64_t{0});
        auto* const data = reinterpret_cast<std::uint8_t*>(const_cast<char*>(messages.bytes.data()));
        return py::array_t<std::uint8_t>(size, data, py::none());  // with a base it shares the memory
      };
      call(bytes(sent), sent.sizes, bytes(received), received.sizes);
    };
  }
};

}  // namespace mfdmc::bindings
