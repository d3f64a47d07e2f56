// Share and SharedRings, which training in several processes is given.
#include <pybind11/stl.h>

#include "bindings_exchange.hpp"

namespace mfdmc::bindings {

void define_exchange(py::module_& module) {
  py::class_<Share>(module, "Share")
      .def(py::init([](int rank, int n_processes, std::int64_t first, std::int64_t total, py::object all_to_all,
                       py::object rings) {
             return Share{rank, n_processes, first, total, std::move(all_to_all), std::move(rings)};
           }),
           py::kw_only(), py::arg("rank"), py::arg("n_processes"), py::arg("first"), py::arg("total"),
           py::arg("all_to_all"), py::arg("rings"));
  py::class_<PyRings>(module, "SharedRings")
      .def(py::init<Array<std::uint8_t>, std::int64_t, int, std::vector<int>>(), py::arg("memory").noconvert(),
           py::arg("capacity"), py::arg("rank"), py::arg("ends"))
      .def_static("size", &SharedRings::size, py::arg("n_processes"), py::arg("capacity"));
  py::register_exception<PeerEnded>(module, "PeerEnded", PyExc_ConnectionError);
}

}  // namespace mfdmc::bindings
