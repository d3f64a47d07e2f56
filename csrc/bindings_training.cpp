// Trainer, batch_loss and what they share: checks the arrays, releases the GIL, calls.
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <vector>

#include "bindings.hpp"
#include "bindings_exchange.hpp"
#include "cpu/trainer.hpp"

namespace mfdmc::bindings {
namespace {

using Floats = Array<float>;
using MaybeFloats = std::optional<Floats>;
using Rows = Array<std::int32_t>;

float* data_of(MaybeFloats& array) { return array ? array->mutable_data() : nullptr; }  // raises if read-only

// One side's parameters and, where it is trained here, their optimizer state. Keeps the arrays alive.
class SideState {
 public:
  SideState(Floats table /* [n, S] */, MaybeFloats bias /* [n] */, MaybeFloats centers /* [S, d] */,
            std::vector<std::int64_t> n_clusters /* [V], empty for FunkMF */, MaybeFloats table_m /* [n, S] */,
            MaybeFloats table_v /* [n, S] */, MaybeFloats bias_m /* [n] */,
            MaybeFloats bias_v /* [n] */, std::optional<Rows> next_step /* [n] */,
            MaybeFloats centers_m /* [S, d] */, MaybeFloats centers_v /* [S, d] */, MaybeFloats table_sum /* [n] */,
            MaybeFloats bias_sum /* [n] */, MaybeFloats centers_sum /* [S] */, MaybeFloats l2_scale /* [n] */)
      : table_(std::move(table)),
        bias_(std::move(bias)),
        centers_(std::move(centers)),
        table_m_(std::move(table_m)),
        table_v_(std::move(table_v)),
        bias_m_(std::move(bias_m)),
        bias_v_(std::move(bias_v)),
        centers_m_(std::move(centers_m)),
        centers_v_(std::move(centers_v)),
        table_sum_(std::move(table_sum)),
        bias_sum_(std::move(bias_sum)),
        centers_sum_(std::move(centers_sum)),
        l2_scale_(std::move(l2_scale)),
        next_step_(std::move(next_step)),
        offsets_{0} {
    if (table_.ndim() != 2) throw py::value_error("table must be a matrix");
    const py::ssize_t n = table_.shape(0), s = table_.shape(1);
    if (s > kMaxColumns) throw py::value_error("more than " + std::to_string(kMaxColumns) + " columns");
    if (centers_) {
      for (std::int64_t clusters : n_clusters) {
        if (clusters < 1) throw py::value_error("n_clusters must be at least 1 in every view");
        offsets_.push_back(offsets_.back() + clusters);
      }
      if (n_clusters.empty() || offsets_.back() != s) throw py::value_error("n_clusters must add up to the columns");
      if (centers_->ndim() != 2) throw py::value_error("centers must be a matrix");
      check_shape("centers", *centers_, {s, centers_->shape(1)});
      if (static_cast<std::int64_t>(n_clusters.size()) * centers_->shape(1) > kMaxColumns)
        throw py::value_error("embeddings of more than " + std::to_string(kMaxColumns) + " numbers");
      for (auto* array : {&centers_m_, &centers_v_})
        if (*array) check_shape("centers' moments", **array, {s, centers_->shape(1)});
    }
    for (auto* array : {&table_m_, &table_v_})
      if (*array) check_shape("table's moments", **array, {n, s});
    for (auto* array : {&bias_, &bias_m_, &bias_v_, &bias_sum_, &table_sum_, &l2_scale_})
      if (*array) check_shape("bias, its moments, the rows' sums and scales", **array, {n});
    if (centers_sum_) check_shape("centers' sums", *centers_sum_, {s});
    if (next_step_) check_shape("next_step", *next_step_, {n});
  }

  TrainedSide side() {
    TrainedSide out{};
    out.logits = table_.mutable_data();
    out.logits_m = data_of(table_m_);
    out.logits_v = data_of(table_v_);
    out.bias = data_of(bias_);
    out.bias_m = data_of(bias_m_);
    out.bias_v = data_of(bias_v_);
    out.next_step = next_step_ ? next_step_->mutable_data() : nullptr;
    out.row_sum = data_of(table_sum_);
    out.bias_sum = data_of(bias_sum_);
    out.centers = data_of(centers_);
    out.l2_scale = l2_scale_ ? l2_scale_->data() : nullptr;
    out.view_offsets = offsets_.data();
    out.n_entities = table_.shape(0);
    out.total_clusters = table_.shape(1);
    out.n_views = static_cast<std::int64_t>(offsets_.size()) - 1;
    out.view_dim = centers_ ? centers_->shape(1) : 0;
    return out;
  }

  TrainedCenters centers() { return {data_of(centers_), data_of(centers_m_), data_of(centers_v_), data_of(centers_sum_), nullptr}; }

  std::int64_t embedding_dim(bool sum_views) const {
    if (!centers_) return table_.shape(1);
    return centers_->shape(1) * (sum_views ? 1 : static_cast<std::int64_t>(offsets_.size()) - 1);
  }

  // Raises unless all state that the optimizer needs is there.
  void require_state(Optimizer optimizer) const {
    const bool adam = optimizer == Optimizer::adam;
    const bool rows = adam ? table_m_ && table_v_ && next_step_ : table_sum_.has_value();
    const bool biases = !bias_ || (adam ? bias_m_ && bias_v_ : bias_sum_.has_value());
    const bool centers = !centers_ || (adam ? centers_m_ && centers_v_ : centers_sum_.has_value());
    if (!rows || !biases || !centers) throw py::value_error("the optimizer's state is not complete");
  }

  bool has_bias() const { return bias_.has_value(); }

 private:
  Floats table_;
  MaybeFloats bias_, centers_, table_m_, table_v_, bias_m_, bias_v_, centers_m_, centers_v_, table_sum_, bias_sum_,
      centers_sum_, l2_scale_;
  std::optional<Rows> next_step_;
  std::vector<std::int64_t> offsets_;
};

// The weights of the loss terms and what else is constant over an epoch.
struct LossOptions {
  float spread, proximity, entropy, l2, bias_l2, spread_margin, global_mean;
  bool sum_views;
};

void check_pair(const SideState& user, const SideState& item, bool sum_views) {
  if (user.embedding_dim(sum_views) != item.embedding_dim(sum_views))
    throw py::value_error("user and item must have embeddings of one length");
  if (user.has_bias() != item.has_bias()) throw py::value_error("either both sides have a bias or none has");
}

StepSetup make_setup(const LossOptions& options, const SideState& user, const SideState& item,
                     const Kernels& kernels) {
  check_pair(user, item, options.sum_views);
  StepSetup setup{};
  const std::int64_t dim = user.embedding_dim(options.sum_views);
  setup.loss = {options.spread,
                options.proximity,
                options.entropy,
                options.l2,
                options.bias_l2,
                options.sum_views,
                0,
                dim,
                (dim + kernels.lanes - 1) / kernels.lanes * kernels.lanes};
  setup.spread_margin = options.spread_margin;
  setup.global_mean = options.global_mean;
  return setup;
}

// The optimizer and its constants for every step of the run.
struct Schedule {
  Optimizer optimizer;
  Floats logit_step, bias_step, center_step, inverse_root;  // [steps]
  double beta1, beta2, epsilon;
  std::vector<float> powers1, powers2;  // [kPowers]

  Schedule(const std::string& optimizer_, Floats logit_step_, Floats bias_step_, Floats center_step_,
           Floats inverse_root_, double beta1_, double beta2_, double epsilon_)
      : optimizer(optimizer_ == "adam" ? Optimizer::adam : Optimizer::adagrad),
        logit_step(std::move(logit_step_)),
        bias_step(std::move(bias_step_)),
        center_step(std::move(center_step_)),
        inverse_root(std::move(inverse_root_)),
        beta1(beta1_),
        beta2(beta2_),
        epsilon(epsilon_) {
    if (optimizer_ != "adam" && optimizer_ != "adagrad") throw py::value_error("optimizer must be adam or adagrad");
    for (std::int32_t n = 0; n < kPowers; ++n) {
      powers1.push_back(static_cast<float>(std::pow(beta1, n)));
      powers2.push_back(static_cast<float>(std::pow(beta2, n)));
    }
    for (const Floats* array : {&logit_step, &bias_step, &center_step, &inverse_root})
      check_shape("schedule", *array, {logit_step.size()});
  }

  StepSchedule arrays() const {
    return {logit_step.data(),
            bias_step.data(),
            inverse_root.data(),
            powers1.data(),
            powers2.data(),
            static_cast<float>(beta1),
            static_cast<float>(beta2),
            static_cast<float>(epsilon),
            static_cast<float>(1 - beta1),
            static_cast<float>(1 - beta2)};
  }

  void apply_to(StepSetup& setup, std::int64_t step) const {
    setup.update.optimizer = optimizer;
    setup.update.schedule = arrays();
    setup.update.step = static_cast<std::int32_t>(step);
    setup.center_step = center_step.data();
  }
};

class PyTrainer {
 public:
  PyTrainer(Indices user_offsets /* [n_users + 1] */, Rows items /* [N] */, Floats ratings /* [N] */,
            std::int64_t n_items, std::int64_t n_batches, std::uint64_t seed, std::int64_t dealt_at_once, int n_threads,
            const std::optional<std::string>& kernels, const std::optional<Share>& share)
      : PyTrainer(std::move(user_offsets), n_items, n_batches, n_threads, kernels) {
    items_ = std::move(items);
    ratings_ = std::move(ratings);
    check_shape("items", items_, {n_});
    check_shape("ratings", ratings_, {n_});
    check_indices("items", items_, n_items);
    begin({user_offsets_.data(), items_.data(), ratings_.data(), n_users_, n_items_, 0, n_}, seed, dealt_at_once, share);
  }

  // Items and ratings are read from files; see RatingFiles.
  PyTrainer(Indices user_offsets /* [n_users + 1] */, const std::string& items, const std::string& ratings,
            std::vector<float> rating_values, std::int64_t n_items, std::int64_t n_batches, std::uint64_t seed,
            std::int64_t dealt_at_once, int n_threads, const std::optional<std::string>& kernels,
            const std::optional<Share>& share)
      : PyTrainer(std::move(user_offsets), n_items, n_batches, n_threads, kernels) {
    files_ = std::make_unique<RatingFiles>(items, ratings, std::move(rating_values), share ? share->total : n_,
                                           share ? share->first : 0, n_items);
    begin({user_offsets_.data(), nullptr, nullptr, n_users_, n_items_, 0, n_, files_.get()}, seed, dealt_at_once, share);
  }

  void start_epoch(std::uint64_t epoch) {
    trainer_->start_epoch(epoch);
    started_ = true;
    sums_.assign(7, 0.0);
  }

  // What runs [first, last) of the epoch that was started give to batch b: users (-1: nothing), items and ratings.
  py::tuple dealt(std::int64_t b, std::int64_t first, std::int64_t last) {
    if (!started_ || b < 0 || b >= n_batches_ || first < 0 || first >= last || last > trainer_->dealer().runs())
      throw py::value_error("start an epoch first; batch and runs must lie in it");
    Rows users(last - first), items(last - first);
    Floats ratings(last - first);
    trainer_->dealer().deal_some(b, first, last, users.mutable_data(), items.mutable_data(), ratings.mutable_data());
    return py::make_tuple(users, items, ratings);
  }

  // Batches [first, last) as steps `step` and following; stops after a batch whose loss is not finite. Returns the
  // sums of the seven loss terms over the ratings of the epoch so far, the number of the batch after the last one
  // worked on, and whether that last loss was not finite.
  py::tuple run(std::int64_t first, std::int64_t last, SideState& user, SideState& item, const LossOptions& options,
                const Schedule& schedule, std::int64_t step) {
    if (!started_ || first < 0 || first > last || last > n_batches_)
      throw py::value_error("start an epoch first; batches must lie in it");
    if (step < 0 || step + last - first > schedule.logit_step.size())
      throw py::value_error("the schedule ends before these steps");
    user.require_state(schedule.optimizer);
    item.require_state(schedule.optimizer);
    StepSetup setup = make_setup(options, user, item, kernels_);
    const TrainedSide user_side = user.side(), item_side = item.side();
    if (user_side.n_entities != n_users_ || item_side.n_entities != trainer_->own_items(n_items_))
      throw py::value_error("tables must have a row for every user and item of the ratings, or every own item");
    const TrainedCenters user_centers = user.centers(), item_centers = item.centers();
    std::int64_t b = first;
    bool finite = true;
    {
      py::gil_scoped_release release;
      Team& team = Team::mine(n_threads_);
      for (; b < last && finite; ++b) {
        schedule.apply_to(setup, step + b - first);
        std::int64_t n = 0;
        const LossValues loss = trainer_->step(b, user_side, user_centers, item_side, item_centers, setup, team, &n);
        const double values[7] = {loss.total,   loss.mse, loss.spread, loss.proximity,
                                  loss.entropy, loss.l2,  loss.bias_l2};
        for (int t = 0; t < 7; ++t) sums_[t] += values[t] * static_cast<double>(n);
        finite = std::isfinite(static_cast<float>(loss.total));
      }
    }
    return py::make_tuple(sums_, b, !finite);
  }

 private:
  PyTrainer(Indices user_offsets, std::int64_t n_items, std::int64_t n_batches, int n_threads,
            const std::optional<std::string>& kernels)
      : user_offsets_(std::move(user_offsets)),
        kernels_(kernels_named(kernels)),
        n_threads_(n_threads),
        n_batches_(n_batches),
        n_users_(user_offsets_.size() - 1),
        n_items_(n_items) {
    check_shape("user_offsets", user_offsets_, {user_offsets_.size()});
    const std::int64_t* offsets = user_offsets_.data();
    if (n_users_ < 1 || offsets[0] != 0 || !std::is_sorted(offsets, offsets + n_users_ + 1))
      throw py::value_error("user_offsets must ascend from 0 to the number of ratings");
    n_ = offsets[n_users_];
    if (n_ < 1 || n_batches < 1 || n_batches > 65536 || n_threads < 1)
      throw py::value_error("there must be ratings, 1 to 65,536 batches and at least one thread");
    if (n_ / n_batches >= std::numeric_limits<std::int32_t>::max()) throw py::value_error("batches are too large");
  }

  void begin(RatingStore store, std::uint64_t seed, std::int64_t dealt_at_once, const std::optional<Share>& share) {
    std::optional<Exchange> exchange;
    if (share) {
      if (share->first < 0 || share->total - share->first < n_ || share->rank < 0 || share->rank >= share->n_processes)
        throw py::value_error("the own ratings must lie among all, and the rank below the number of processes");
      store.first = share->first;
      store.total = share->total;
      exchange.emplace(share->rank, share->n_processes, n_items_, share->swap());
    }
    trainer_ = std::make_unique<Trainer>(store, n_batches_, seed, dealt_at_once, std::move(exchange), kernels_);
  }

  Indices user_offsets_;
  Rows items_;
  Floats ratings_;
  std::unique_ptr<RatingFiles> files_;
  const Kernels& kernels_;
  int n_threads_;
  std::int64_t n_ = 0, n_batches_, n_users_, n_items_;
  bool started_ = false;
  std::vector<double> sums_;
  std::unique_ptr<Trainer> trainer_;
};

// Adam's steps without gradient for all rows that have missed some, up to step `until`.
void catch_up(SideState& side, const Schedule& schedule, std::int64_t until, int n_threads) {
  side.require_state(Optimizer::adam);
  if (until > schedule.logit_step.size()) throw py::value_error("the schedule ends before these steps");
  const TrainedSide trained = side.side();
  const StepSchedule arrays = schedule.arrays();
  const Kernels& kernels = kernels_named(std::nullopt);
  py::gil_scoped_release release;
  constexpr std::int64_t block = 256;
  Team::mine(n_threads).run((trained.n_entities + block - 1) / block, [&](std::int64_t index, int) {
    kernels.catch_up(trained, arrays, static_cast<std::int32_t>(until), index * block,
                     std::min(trained.n_entities, (index + 1) * block));
  });
}

// Mean assignment weights [S] over the rows that `among` names; NaN where it names none.
std::vector<double> cluster_usage(SideState& side, const Array<bool>& among /* [n] */, int n_threads,
                                  const std::optional<std::string>& kernels_name) {
  const Kernels& kernels = kernels_named(kernels_name);
  const TrainedSide table = side.side();
  if (!table.centers || n_threads < 1) throw py::value_error("a side with clusters is needed, and a thread");
  check_shape("among", among, {table.n_entities});
  const bool* const counted = among.data();
  const std::int64_t s = table.total_clusters, n = table.n_entities;
  constexpr std::int64_t block = 1024;  // part of the definition of the sums
  std::vector<double> parts((n + block - 1) / block * s), usage(s, 0.0);
  py::gil_scoped_release release;
  Team::mine(n_threads).run((n + block - 1) / block, [&](std::int64_t index, int) {
    kernels.weight_sums(table, counted, index * block, std::min(n, (index + 1) * block), parts.data() + index * s);
  });
  for (std::size_t j = 0; j < parts.size(); ++j) usage[j % s] += parts[j];
  const double n_counted = static_cast<double>(std::count(counted, counted + n, true));
  for (double& share : usage) share /= n_counted;
  return usage;
}

// The loss terms of a batch in any order; writes gradients of `total` into zeroed tables.
std::vector<double> batch_loss(SideState& user, SideState& item, const Indices& user_idx /* [B] */,
                               const Indices& item_idx /* [B] */, const Floats& ratings /* [B] */,
                               const LossOptions& options, Floats user_grad /* [n, S] */,
                               MaybeFloats user_bias_grad /* [n] */, MaybeFloats user_centers_grad /* [S, d] */,
                               Floats item_grad, MaybeFloats item_bias_grad, MaybeFloats item_centers_grad,
                               int n_threads, const std::optional<std::string>& kernels_name) {
  const Kernels& kernels = kernels_named(kernels_name);
  StepSetup setup = make_setup(options, user, item, kernels);
  setup.update.optimizer = Optimizer::none;
  const std::int64_t n = ratings.size();
  check_shape("user_idx", user_idx, {n});
  check_shape("item_idx", item_idx, {n});
  check_shape("ratings", ratings, {n});
  if (n < 1 || n_threads < 1) throw py::value_error("an empty batch, or no threads");
  setup.loss.batch_size = n;
  const TrainedSide sides[2] = {user.side(), item.side()};
  TrainedCenters centers[2] = {user.centers(), item.centers()};
  const Indices* indices[2] = {&user_idx, &item_idx};
  Floats* tables[2] = {&user_grad, &item_grad};
  MaybeFloats *biases[2] = {&user_bias_grad, &item_bias_grad}, *center_grads[2] = {&user_centers_grad, &item_centers_grad};
  GradientTables gradients[2];
  for (int s = 0; s < 2; ++s) {
    check_shape("gradient of the table", *tables[s], {sides[s].n_entities, sides[s].total_clusters});
    if (biases[s]->has_value()) check_shape("gradient of the bias", **biases[s], {sides[s].n_entities});
    if (sides[s].centers) {
      if (!center_grads[s]->has_value()) throw py::value_error("the gradient of the centers has no place");
      check_shape("gradient of the centers", **center_grads[s], {sides[s].total_clusters, sides[s].view_dim});
    }
    gradients[s] = {tables[s]->mutable_data(), data_of(*biases[s])};
    centers[s].grad = data_of(*center_grads[s]);
    for (std::int64_t b = 0; b < n; ++b) {
      const std::int64_t index = indices[s]->data()[b];
      if (index < 0 || index >= sides[s].n_entities)
        throw std::out_of_range("index " + std::to_string(b) + " is " + std::to_string(index) + ", outside [0, " +
                                std::to_string(sides[s].n_entities) + ")");
    }
  }
  setup.user_gradients = gradients[0];
  setup.item_gradients = gradients[1];
  const std::int64_t *users = user_idx.data(), *items = item_idx.data();
  const float* values = ratings.data();
  py::gil_scoped_release release;
  GroupedBatch batch;
  std::vector<float> values_by_user;
  group_pairs(users, items, values, n, values_by_user, batch);
  const int worth = n < 2048 ? 1 : n_threads;  // a batch too small to share out is faster on one thread
  const LossValues loss = BatchStep(kernels).run(batch, sides[0], centers[0], sides[1], centers[1], setup,
                                                 Team::mine(worth), nullptr, nullptr);
  return {loss.total, loss.mse, loss.spread, loss.proximity, loss.entropy, loss.l2, loss.bias_l2};
}

}  // namespace

void define_training(py::module_& module) {
  py::class_<SideState>(module, "SideState")
      .def(py::init<Floats, MaybeFloats, MaybeFloats, std::vector<std::int64_t>, MaybeFloats, MaybeFloats, MaybeFloats,
                    MaybeFloats, std::optional<Rows>, MaybeFloats, MaybeFloats, MaybeFloats, MaybeFloats, MaybeFloats,
                    MaybeFloats>(),
           py::arg("table").noconvert(), py::arg("bias").noconvert(), py::arg("centers").noconvert(),
           py::arg("n_clusters"), py::arg("table_m").noconvert() = py::none(),
           py::arg("table_v").noconvert() = py::none(), py::arg("bias_m").noconvert() = py::none(),
           py::arg("bias_v").noconvert() = py::none(), py::arg("next_step").noconvert() = py::none(),
           py::arg("centers_m").noconvert() = py::none(), py::arg("centers_v").noconvert() = py::none(),
           py::arg("table_sum").noconvert() = py::none(), py::arg("bias_sum").noconvert() = py::none(),
           py::arg("centers_sum").noconvert() = py::none(), py::arg("l2_scale").noconvert() = py::none());
  py::class_<LossOptions>(module, "LossOptions")
      .def(py::init([](float spread, float proximity, float entropy, float l2, float bias_l2, float spread_margin,
                       float global_mean, bool sum_views) {
             return LossOptions{spread, proximity, entropy, l2, bias_l2, spread_margin, global_mean, sum_views};
           }),
           py::kw_only(), py::arg("spread"), py::arg("proximity"), py::arg("entropy"), py::arg("l2"),
           py::arg("bias_l2"), py::arg("spread_margin"), py::arg("global_mean"), py::arg("sum_views"));
  py::class_<Schedule>(module, "Schedule")
      .def(py::init<const std::string&, Floats, Floats, Floats, Floats, double, double, double>(), py::kw_only(),
           py::arg("optimizer"), py::arg("logit_step").noconvert(), py::arg("bias_step").noconvert(),
           py::arg("center_step").noconvert(), py::arg("inverse_root").noconvert(), py::arg("beta1"),
           py::arg("beta2"), py::arg("epsilon"));
  py::register_exception<RatingFileError>(module, "RatingFileError", PyExc_OSError);
  py::class_<PyTrainer>(module, "Trainer")
      .def(py::init<Indices, Rows, Floats, std::int64_t, std::int64_t, std::uint64_t, std::int64_t, int,
                    const std::optional<std::string>&, const std::optional<Share>&>(),
           py::kw_only(), py::arg("user_offsets").noconvert(), py::arg("items").noconvert(),
           py::arg("ratings").noconvert(), py::arg("n_items"), py::arg("n_batches"), py::arg("seed"),
           py::arg("dealt_at_once"), py::arg("n_threads"), py::arg("kernels"), py::arg("share") = py::none())
      .def(py::init<Indices, const std::string&, const std::string&, std::vector<float>, std::int64_t, std::int64_t,
                    std::uint64_t, std::int64_t, int, const std::optional<std::string>&, const std::optional<Share>&>(),
           py::kw_only(), py::arg("user_offsets").noconvert(), py::arg("items"), py::arg("ratings"),
           py::arg("rating_values"), py::arg("n_items"), py::arg("n_batches"), py::arg("seed"),
           py::arg("dealt_at_once"), py::arg("n_threads"), py::arg("kernels"), py::arg("share") = py::none())
      .def("start_epoch", &PyTrainer::start_epoch, py::arg("epoch"))
      .def("dealt", &PyTrainer::dealt, py::kw_only(), py::arg("batch"), py::arg("first"), py::arg("last"))
      .def("run", &PyTrainer::run, py::kw_only(), py::arg("first"), py::arg("last"), py::arg("user"), py::arg("item"),
           py::arg("options"), py::arg("schedule"), py::arg("step"));
  module.def("available_kernels", [] {
    std::vector<std::string> names;
    for (const char* name : {"avx512", "avx2", "baseline"})
      if (choose_kernels(name)) names.emplace_back(name);
    return names;
  });
  module.def("catch_up", &catch_up, py::arg("side"), py::arg("schedule"), py::arg("until"), py::arg("n_threads"));
  module.def("cluster_usage", &cluster_usage, py::kw_only(), py::arg("side"), py::arg("among").noconvert(),
             py::arg("n_threads"), py::arg("kernels"));
  module.def("batch_loss", &batch_loss, py::kw_only(), py::arg("user"), py::arg("item"),
             py::arg("user_idx").noconvert(), py::arg("item_idx").noconvert(), py::arg("ratings").noconvert(),
             py::arg("options"), py::arg("user_grad").noconvert(), py::arg("user_bias_grad").noconvert(),
             py::arg("user_centers_grad").noconvert(), py::arg("item_grad").noconvert(),
             py::arg("item_bias_grad").noconvert(), py::arg("item_centers_grad").noconvert(), py::arg("n_threads"),
             py::arg("kernels"));
}

}  // namespace mfdmc::bindings
