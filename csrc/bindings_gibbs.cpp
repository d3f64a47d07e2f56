// The Gibbs sampler: checks the arrays, releases the GIL, calls.
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "cpu/gibbs.hpp"

namespace mfdmc::bindings {
namespace {

using Floats = Array<float>;
using Rows = Array<std::int32_t>;
using Bags = std::vector<std::pair<Indices, Rows>>;  // offsets [F + 1] and entities of each

void check_grouped(const std::string& name, const Indices& offsets, const Rows& members, std::int64_t n) {
  const std::int64_t* const at = offsets.data();
  const std::int64_t groups = offsets.size() - 1;
  if (groups < 1 || at[0] != 0 || at[groups] != members.size() || !std::is_sorted(at, at + groups + 1))
    throw py::value_error(name + ": offsets must ascend from 0 to the number of members");
  check_indices(name, members, n);
}

// Predictions of P pairs, clipped, added up over draws.
class PairSums {
 public:
  PairSums(Rows users /* [P] */, Rows items /* [P] */, std::int64_t n_users, std::int64_t n_items, float low, float high,
           Floats sums /* [P] */)
      : users_(std::move(users)),
        items_(std::move(items)),
        sums_(std::move(sums)),
        n_users_(n_users),
        n_items_(n_items),
        low_(low),
        high_(high) {
    const py::ssize_t n = users_.size();
    check_shape("items", items_, {n});
    check_shape("sums", sums_, {n});
    check_indices("users", users_, n_users);
    check_indices("items", items_, n_items);
    sums_.mutable_data();  // raises if read-only
  }

  void add(const GibbsSampler& sampler, int n_threads) {
    if (sampler.rows(0) != n_users_ || sampler.rows(1) != n_items_)
      throw py::value_error("these pairs are of tables of another size");
    float* const sums = sums_.mutable_data();
    const std::int32_t *users = users_.data(), *items = items_.data();
    const std::int64_t n = users_.size();
    py::gil_scoped_release release;
    sampler.add_predictions(users, items, n, low_, high_, sums, Team::mine(n_threads));
  }

 private:
  Rows users_, items_;
  Floats sums_;
  std::int64_t n_users_, n_items_;
  float low_, high_;
};

class PyGibbsSampler {
 public:
  PyGibbsSampler(Indices user_offsets /* [n_users + 1] */, Rows items /* [N] */, Floats ratings /* [N] */,
                 std::int64_t n_items, float mean, std::int64_t rank, std::uint64_t seed, bool implicit,
                 double noise_degrees, Bags user_bags, Bags item_bags, int n_threads, const std::optional<std::string>& kernels)
      : user_offsets_(std::move(user_offsets)),
        items_(std::move(items)),
        ratings_(std::move(ratings)),
        user_bags_(std::move(user_bags)),
        item_bags_(std::move(item_bags)),
        n_threads_(n_threads) {
    const std::int64_t n_users = user_offsets_.size() - 1;
    check_grouped("items", user_offsets_, items_, n_items);
    check_shape("ratings", ratings_, {items_.size()});
    if (rank < 1 || rank > kMaxRank || n_threads < 1 || items_.size() < 1)
      throw py::value_error("there must be ratings, a thread and a rank of 1 to " + std::to_string(kMaxRank));
    // below 2, a weight could be drawn from a Gamma distribution of a shape below 1, which the sampler does not cover
    if (noise_degrees != 0 && !(noise_degrees >= 2 && noise_degrees < 1e6))
      throw py::value_error("noise_degrees must be 0 or in [2, 1e6)");
    sampler_ = std::make_unique<GibbsSampler>(
        RatingStore{user_offsets_.data(), items_.data(), ratings_.data(), n_users, n_items}, mean, rank, seed,
        implicit, noise_degrees, views(user_bags_, n_users), views(item_bags_, n_items), kernels_named(kernels));
  }

  void sweep() {
    py::gil_scoped_release release;
    sampler_->sweep(Team::mine(n_threads_));
  }

  void add_predictions(PairSums& pairs) const { pairs.add(*sampler_, n_threads_); }

  void copy_rows(int side, Floats& out /* [n, rank + 1] */) const {
    if (side != 0 && side != 1) throw py::value_error("side must be 0 or 1");
    check_shape("out", out, {sampler_->rows(side), sampler_->rank() + 1});
    sampler_->copy_rows(side, out.mutable_data());
  }

  void copy_weights(int side, Floats& out /* [n] */) const {
    if (side != 0 && side != 1) throw py::value_error("side must be 0 or 1");
    const std::vector<float>& weights = sampler_->weights(side);
    check_shape("out", out, {sampler_->rows(side)});
    std::copy(weights.begin(), weights.end(), out.mutable_data());
  }

  double noise_precision() const { return sampler_->noise_precision(); }

 private:
  static std::vector<FeatureBags> views(const Bags& bags, std::int64_t n) {
    std::vector<FeatureBags> out;
    for (const auto& [offsets, entities] : bags) {
      check_grouped("features", offsets, entities, n);
      out.push_back({offsets.data(), entities.data(), offsets.size() - 1});
    }
    return out;
  }

  Indices user_offsets_;
  Rows items_;
  Floats ratings_;
  Bags user_bags_, item_bags_;
  int n_threads_;
  std::unique_ptr<GibbsSampler> sampler_;
};

// Means and standard deviations over D kept draws of the clipped predictions of P pairs.
void scores_of_draws(const Floats& user_draws /* [D, n_users, rank + 1] */,
                     const Floats& item_draws /* [D, n_items, rank + 1] */, float mean, float low, float high,
                     const Indices& user_idx /* [P] */, const Indices& item_idx /* [P] */, int n_threads,
                     Floats& means /* [P] */, Floats& deviations /* [P] */) {
  if (user_draws.ndim() != 3 || item_draws.ndim() != 3) throw py::value_error("draws must have three dimensions");
  const Draws draws{user_draws.data(),     item_draws.data(),   user_draws.shape(0), user_draws.shape(1),
                    item_draws.shape(1), user_draws.shape(2) - 1};
  check_shape("item_draws", item_draws, {draws.n_draws, draws.n_items, draws.rank + 1});
  const std::int64_t n = user_idx.size();
  check_shape("item_idx", item_idx, {n});
  check_shape("means", means, {n});
  check_shape("deviations", deviations, {n});
  check_indices("user_idx", user_idx, draws.n_users);
  check_indices("item_idx", item_idx, draws.n_items);
  if (draws.n_draws < 1 || draws.rank < 1 || n_threads < 1)
    throw py::value_error("there must be draws, factors and a thread");
  const std::int64_t *users = user_idx.data(), *items = item_idx.data();
  float *const out = means.mutable_data(), *const spread = deviations.mutable_data();
  py::gil_scoped_release release;
  posterior_scores(draws, mean, low, high, users, items, n, out, spread, Team::mine(n_threads));
}

}  // namespace

void define_gibbs(py::module_& module) {
  py::class_<PairSums>(module, "PairSums")
      .def(py::init<Rows, Rows, std::int64_t, std::int64_t, float, float, Floats>(),
           py::kw_only(), py::arg("users").noconvert(), py::arg("items").noconvert(), py::arg("n_users"),
           py::arg("n_items"), py::arg("low"), py::arg("high"), py::arg("sums").noconvert());
  module.def("posterior_scores", &scores_of_draws, py::kw_only(), py::arg("user_draws").noconvert(),
             py::arg("item_draws").noconvert(), py::arg("mean"), py::arg("low"), py::arg("high"),
             py::arg("user_idx").noconvert(), py::arg("item_idx").noconvert(), py::arg("n_threads"),
             py::arg("means").noconvert(), py::arg("deviations").noconvert());
  py::class_<PyGibbsSampler>(module, "GibbsSampler")
      .def(py::init<Indices, Rows, Floats, std::int64_t, float, std::int64_t, std::uint64_t, bool, double, Bags, Bags, int,
                    const std::optional<std::string>&>(),
           py::kw_only(), py::arg("user_offsets").noconvert(), py::arg("items").noconvert(),
           py::arg("ratings").noconvert(), py::arg("n_items"), py::arg("mean"), py::arg("rank"), py::arg("seed"),
           py::arg("implicit"), py::arg("noise_degrees"), py::arg("user_bags").noconvert(),
           py::arg("item_bags").noconvert(), py::arg("n_threads"), py::arg("kernels"))
      .def("sweep", &PyGibbsSampler::sweep)
      .def("add_predictions", &PyGibbsSampler::add_predictions, py::arg("pairs"))
      .def("copy_rows", &PyGibbsSampler::copy_rows, py::arg("side"), py::arg("out").noconvert())
      .def("copy_weights", &PyGibbsSampler::copy_weights, py::arg("side"), py::arg("out").noconvert())
      .def_property_readonly("noise_precision", &PyGibbsSampler::noise_precision);
}

}  // namespace mfdmc::bindings
