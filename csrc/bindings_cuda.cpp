// The Python module mfdmc_fast._cuda: passes on device pointers, as whole numbers, and starts kernels. The checks are
// in mfdmc_fast.ops.cuda, because pointers no longer show what they point to.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/kernels.hpp"
#ifdef MFDMC_EMULATE
#include "cuda/block.hpp"
#endif

namespace py = pybind11;
using namespace mfdmc::cuda;

namespace {

// A device pointer, or None.
using Address = const py::object&;

template <typename T>
T* pointer(Address address) {
  return address.is_none() ? nullptr : reinterpret_cast<T*>(address.cast<std::uintptr_t>());
}

Entities make_entities(Address assignment_logits, Address centers, Address bias, Address view_offsets, Address view_of,
                       Address rows, std::int64_t n_rows, int total_clusters, int n_views, int view_dim,
                       bool sum_views) {
  if (total_clusters < n_views || n_views < 1 || view_dim < 1 || total_clusters > kMaxColumns ||
      n_views * view_dim > kMaxColumns)
    throw std::invalid_argument("clusters or embeddings do not fit in shared memory");
  return {pointer<const float>(assignment_logits),
          pointer<const float>(centers),
          pointer<const float>(bias),
          pointer<const std::int32_t>(view_offsets),
          pointer<const std::int32_t>(view_of),
          pointer<const std::int64_t>(rows),
          n_rows,
          total_clusters,
          n_views,
          view_dim,
          sum_views};
}

SideBatch make_batch(Address row_offsets, Address chunk_offsets, Address chunk_row, Address partner, Address ratings,
                     Address l2_scale, std::int64_t n_ratings, std::int64_t n_chunks) {
  return {pointer<const std::int64_t>(row_offsets),
          pointer<const std::int64_t>(chunk_offsets),
          pointer<const std::int32_t>(chunk_row),
          pointer<const std::int64_t>(partner),
          pointer<const float>(ratings),
          pointer<const float>(l2_scale),
          n_ratings,
          n_chunks};
}

void define_entities(py::module_& module) {
  // local to the module: tests load another build of it beside this one
  py::class_<Queue>(module, "Queue", py::module_local()).def(
      py::init([](int device, Address stream) { return Queue{device, pointer<void>(stream)}; }), py::arg("device"),
      py::arg("stream"));
  py::class_<Entities>(module, "Entities", py::module_local())
      .def(py::init(&make_entities), py::kw_only(), py::arg("assignment_logits"), py::arg("centers"), py::arg("bias"),
           py::arg("view_offsets"), py::arg("view_of"), py::arg("rows"), py::arg("n_rows"), py::arg("total_clusters"),
           py::arg("n_views"), py::arg("view_dim"), py::arg("sum_views"))
      .def_property_readonly("forward_blocks", &forward_blocks)
      .def_property_readonly("backward_blocks", &backward_blocks);
  py::class_<SideBatch>(module, "SideBatch", py::module_local())
      .def(py::init(&make_batch), py::kw_only(), py::arg("row_offsets"), py::arg("chunk_offsets"),
           py::arg("chunk_row"), py::arg("partner"), py::arg("ratings"), py::arg("l2_scale"), py::arg("n_ratings"),
           py::arg("n_chunks"));
}

void define_cluster_usage(py::module_& module) {
  module.attr("USAGE_PARTS") = kUsageParts;
  module.def(
      "cluster_usage",
      [](const Entities& side, Address parts, const Queue& queue) {
        cluster_usage(side, pointer<double>(parts), queue);
      },
      py::arg("side"), py::arg("parts"), py::arg("queue"));
}

void define_score_pairs(py::module_& module) {
  module.def(
      "embed",
      [](const Entities& side, Address embeddings, const Queue& queue) {
        embed(side, pointer<float>(embeddings), queue);
      },
      py::arg("side"), py::arg("embeddings"), py::arg("queue"));
  module.def(
      "score_pairs",
      [](Address users, Address items, Address user_bias, Address item_bias, Address user_position,
         Address item_position, std::int64_t n_pairs, int dim, float global_mean, Address predictions,
         const Queue& queue) {
        score_pairs({pointer<const float>(users), pointer<const float>(items), pointer<const float>(user_bias),
                     pointer<const float>(item_bias), pointer<const std::int64_t>(user_position),
                     pointer<const std::int64_t>(item_position), n_pairs, dim, global_mean,
                     pointer<float>(predictions)},
                    queue);
      },
      py::kw_only(), py::arg("users"), py::arg("items"), py::arg("user_bias"), py::arg("item_bias"),
      py::arg("user_position"), py::arg("item_position"), py::arg("n_pairs"), py::arg("dim"), py::arg("global_mean"),
      py::arg("predictions"), py::arg("queue"));
}

void define_batch_loss(py::module_& module) {
  module.attr("CHUNK") = kChunk;
  module.def(
      "entity_forward",
      [](const Entities& side, const SideBatch& batch, Address embeddings, Address terms, const Queue& queue) {
        entity_forward(side, batch, pointer<float>(embeddings), pointer<float>(terms), queue);
      },
      py::arg("side"), py::arg("batch"), py::kw_only(), py::arg("embeddings"), py::arg("terms"), py::arg("queue"));
  module.def(
      "rating_pass",
      [](const SideBatch& batch, Address own, Address other, Address own_bias, Address other_bias, int dim,
         float global_mean, Address gradients, Address squares, const Queue& queue) {
        rating_pass(batch,
                    {pointer<const float>(own), pointer<const float>(other), pointer<const float>(own_bias),
                     pointer<const float>(other_bias), dim, global_mean, pointer<float>(gradients),
                     pointer<float>(squares)},
                    queue);
      },
      py::arg("batch"), py::kw_only(), py::arg("own"), py::arg("other"), py::arg("own_bias"), py::arg("other_bias"),
      py::arg("dim"), py::arg("global_mean"), py::arg("gradients"), py::arg("squares"), py::arg("queue"));
  module.def(
      "entity_backward",
      [](const Entities& side, const SideBatch& batch, Address chunk_gradients, float proximity, float entropy,
         float l2, float bias_l2, Address logits, Address bias, Address center_parts, const Queue& queue) {
        entity_backward(side, batch,
                        {pointer<const float>(chunk_gradients), proximity, entropy, l2, bias_l2,
                         pointer<float>(logits), pointer<float>(bias), pointer<float>(center_parts)},
                        queue);
      },
      py::arg("side"), py::arg("batch"), py::kw_only(), py::arg("chunk_gradients"), py::arg("proximity"),
      py::arg("entropy"), py::arg("l2"), py::arg("bias_l2"), py::arg("logits"), py::arg("bias"),
      py::arg("center_parts"), py::arg("queue"));
  module.def(
      "center_gradients",
      [](const Entities& side, Address parts, std::int64_t n_parts, float spread, float margin, Address sums,
         Address gradients, Address spread_parts, const Queue& queue) {
        center_gradients(side,
                         {pointer<const float>(parts), n_parts, spread, margin, pointer<float>(sums),
                          pointer<float>(gradients), pointer<float>(spread_parts)},
                         queue);
      },
      py::arg("side"), py::kw_only(), py::arg("parts"), py::arg("n_parts"), py::arg("spread"), py::arg("margin"),
      py::arg("sums"), py::arg("gradients"), py::arg("spread_parts"), py::arg("queue"));
}

void define_top_items(py::module_& module) {
  module.attr("MOST_LISTED") = kMostListed;
  module.def(
      "top_items",
      [](Address users, Address items, Address item_bias, Address exclude_offsets, Address exclude_items,
         std::int64_t n_users, int n_items, int dim, int n, int first, int last, int splits, Address part_scores,
         Address part_items, Address found, Address scores, const Queue& queue) {
        top_items({pointer<const float>(users), pointer<const float>(items), pointer<const float>(item_bias),
                   pointer<const std::int64_t>(exclude_offsets), pointer<const std::int32_t>(exclude_items), n_users,
                   n_items, dim, n, first, last, splits, pointer<float>(part_scores),
                   pointer<std::int32_t>(part_items), pointer<std::int64_t>(found), pointer<float>(scores)},
                  queue);
      },
      py::kw_only(), py::arg("users"), py::arg("items"), py::arg("item_bias"), py::arg("exclude_offsets"),
      py::arg("exclude_items"), py::arg("n_users"), py::arg("n_items"), py::arg("dim"), py::arg("n"),
      py::arg("first"), py::arg("last"), py::arg("splits"), py::arg("part_scores"), py::arg("part_items"),
      py::arg("found"), py::arg("scores"), py::arg("queue"));
}

CompactColumns make_compaction(Address table, Address keep, std::int64_t n_rows, int columns, int kept) {
  if (kept < 1 || kept > columns || columns > kMaxColumns) throw std::invalid_argument("columns do not fit");
  return {pointer<float>(table), pointer<const std::int64_t>(keep), n_rows, columns, kept};
}

void define_compaction(py::module_& module) {
  module.attr("MAX_COLUMNS") = kMaxColumns;
  py::class_<CompactColumns>(module, "Compaction", py::module_local())
      .def(py::init(&make_compaction), py::kw_only(), py::arg("table"), py::arg("keep"), py::arg("n_rows"),
           py::arg("columns"), py::arg("kept"))
      .def_property_readonly("tiles", &compaction_tiles)
#ifdef MFDMC_EMULATE
      .def("run_in_any_order", &compact_in_any_order, py::arg("seed"))
#endif
      .def(
          "run",
          [](const CompactColumns& call, Address progress, const Queue& queue) {
            compact_columns(call, pointer<std::int32_t>(progress), queue);
          },
          py::arg("progress"), py::arg("queue"));
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "CUDA kernels of mfdmc_fast; called through mfdmc_fast.ops.cuda alone.";
  module.def("device_problem", &device_problem, "Why no kernel can run here, or an empty text.");
  define_entities(module);
  define_cluster_usage(module);
  define_score_pairs(module);
  define_batch_loss(module);
  define_top_items(module);
  define_compaction(module);
#ifdef MFDMC_EMULATE
  module.def("set_descending_tasks", [](bool descending) { descending_tasks = descending; });
#endif
}
