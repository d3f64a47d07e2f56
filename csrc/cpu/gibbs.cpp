#include "cpu/gibbs.hpp"

#include <algorithm>
#include <cmath>

#include "cpu/split_mix.hpp"

namespace mfdmc {
namespace {

// Gamma(1, 1) priors of all precisions, in units of the ratings: weak, as the posterior adds half the number of rows to
// the shape.
constexpr double kPriorShape = 1.0, kPriorRate = 1.0;
constexpr double kFirstPrecision = 5.0, kFirstWeightPrecision = 50.0, kFirstScale = 0.1;
constexpr float kNeverUsed = 1e30f;  // precision of padding, so that what is drawn there is next to nothing

// Random numbers one after the other.
class Stream {
 public:
  explicit Stream(std::uint64_t key) : key_(key) {}

  double uniform() { return (static_cast<double>(random_at(key_, next_++) >> 12) + 0.5) * 0x1p-52; }  // (0, 1)

  double normal() {
    const double radius = std::sqrt(-2 * std::log(uniform()));
    return radius * std::cos(6.283185307179586 * uniform());
  }

  // Marsaglia and Tsang, 2000; shape >= 1.
  double gamma(double shape, double rate) {
    const double d = shape - 1.0 / 3, c = 1 / std::sqrt(9 * d);
    for (;;) {
      const double x = normal(), v = std::pow(1 + c * x, 3);
      if (v > 0 && std::log(uniform()) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v / rate;
    }
  }

 private:
  std::uint64_t key_;
  std::int64_t next_ = 0;
};

// The standard deviation of the ratings, 1 where they are all the same.
double deviation(const RatingStore& store, float mean) {
  double squares = 0;
  for (std::int64_t q = 0; q < store.size(); ++q) {
    const double difference = double{store.ratings[q]} - mean;
    squares += difference * difference;
  }
  return squares > 0 ? std::sqrt(squares / store.size()) : 1.0;
}

}  // namespace

GibbsSampler::GibbsSampler(const RatingStore& store, float mean, std::int64_t rank, std::uint64_t seed, bool implicit,
                           double noise_degrees, const std::vector<FeatureBags>& user_bags, const std::vector<FeatureBags>& item_bags,
                           const Kernels& kernels)
    : kernels_(kernels),
      lanes_(kernels.lanes),
      shape_{rank, (rank + 2 + kGibbsPadding - 1) / kGibbsPadding * kGibbsPadding, mean, 1.0f},
      unit_(deviation(store, mean)),
      seed_(seed),
      noise_degrees_(noise_degrees),
      item_offsets_(store.n_items + 1, 0),
      item_users_(store.size()),
      item_ratings_(store.size()) {
  for (std::int64_t q = 0; q < store.size(); ++q) ++item_offsets_[store.items[q] + 1];
  for (std::int64_t i = 0; i < store.n_items; ++i) item_offsets_[i + 1] += item_offsets_[i];
  std::vector<std::int64_t> next(item_offsets_.begin(), item_offsets_.end() - 1);
  for (std::int64_t u = 0; u < store.n_users; ++u)
    for (std::int64_t q = store.user_offsets[u]; q < store.user_offsets[u + 1]; ++q) {
      const std::int64_t place = next[store.items[q]]++;
      item_users_[place] = static_cast<std::int32_t>(u);
      item_ratings_[place] = store.ratings[q];
    }
  Side &user = sides_[0], &item = sides_[1];
  user.n = store.n_users, user.offsets = store.user_offsets, user.partners = store.items, user.ratings = store.ratings;
  item.n = store.n_items, item.offsets = item_offsets_.data(), item.partners = item_users_.data();
  item.ratings = item_ratings_.data();
  shape_.noise_precision = static_cast<float>(1 / (unit_ * unit_));
  begin(user, user_bags, implicit, item, key(Purpose::start, 0));
  begin(item, item_bags, implicit, user, key(Purpose::start, 1));
}

void GibbsSampler::begin(Side& side, const std::vector<FeatureBags>& bags, bool implicit, const Side& other,
                         std::uint64_t key) {
  const std::int64_t stride = shape_.stride, rank = shape_.rank;
  side.factors.assign(side.n * stride, 0.0f);
  side.bias.assign(side.n, 0.0f);
  side.weight.assign(side.n, 1.0f);
  side.squares.assign(side.n, 0.0);
  side.prior.assign(side.n * stride, 0.0f);
  side.residuals.assign(side.n * stride, 0.0f);
  side.mean.assign(stride, 0.0f);
  side.precision.assign(stride, kNeverUsed);
  for (std::int64_t k = 0; k <= rank; ++k) side.precision[k] = static_cast<float>(kFirstPrecision / square_unit(k));
  Stream random(key);
  for (std::int64_t e = 0; e < side.n; ++e) {
    for (std::int64_t k = 0; k < rank; ++k)
      side.factors[e * stride + k] = static_cast<float>(kFirstScale * std::sqrt(unit_) * random.normal());
    side.factors[e * stride + rank] = 1.0f;
  }
  std::vector<FeatureBags> all = bags;
  if (implicit) all.push_back({other.offsets, other.partners, other.n});
  std::vector<float> times(side.n, 0.0f);  // that an entity has a feature: more than once where pairs are repeated
  for (const FeatureBags& bag : all) {
    Block block{bag, std::vector<float>(side.n, 0.0f), std::vector<float>(bag.n_features, 0.0f),
                std::vector<float>(bag.n_features * stride, 0.0f), std::vector<float>(stride, kNeverUsed)};
    for (std::int64_t k = 0; k <= rank; ++k)
      block.precision[k] = static_cast<float>(kFirstWeightPrecision / square_unit(k));
    for (std::int64_t q = 0; q < bag.offsets[bag.n_features]; ++q) block.scale[bag.entities[q]] += 1.0f;
    for (float& scale : block.scale) scale = scale > 0 ? 1.0f / std::sqrt(scale) : 0.0f;
    for (std::int64_t f = 0; f < bag.n_features; ++f) {
      const std::int32_t *const first = bag.entities + bag.offsets[f], *const last = bag.entities + bag.offsets[f + 1];
      for (const std::int32_t* e = first; e < last; ++e) times[*e] += 1.0f;
      double squares = 0;
      for (const std::int32_t* e = first; e < last; ++e) squares += times[*e] * block.scale[*e] * block.scale[*e];
      for (const std::int32_t* e = first; e < last; ++e) times[*e] = 0.0f;
      block.squares[f] = static_cast<float>(squares);
    }
    side.blocks.push_back(std::move(block));
  }
}

void GibbsSampler::sweep(Team& team) {
  ++sweep_;
  draw_rows(0, team);
  draw_rows(1, team);
  const std::int64_t columns = (shape_.rank + 1 + lanes_ - 1) / lanes_;
  team.run(2 * columns, [&](std::int64_t index, int) {
    draw_prior(static_cast<int>(index % 2), index / 2 * lanes_);
  });
  draw_noise(team);
}

void GibbsSampler::draw_rows(int which, Team& team) {
  const GibbsSide own = view(sides_[which]), other = view(sides_[1 - which]);
  const std::uint64_t draw = key(Purpose::rows, which);
  const std::int64_t floats = gibbs_scratch(shape_.rank, shape_.stride, lanes_);
  std::vector<float> scratch(floats * team.size());
  team.run((own.n + lanes_ - 1) / lanes_, [&](std::int64_t tile, int member) {
    kernels_.gibbs.sample_rows(own, other, shape_, draw, tile * lanes_, std::min(own.n, (tile + 1) * lanes_),
                               scratch.data() + floats * member);
  });
}

void GibbsSampler::draw_prior(int which, std::int64_t column) {
  Side& side = sides_[which];
  const std::int64_t stride = shape_.stride, rank = shape_.rank, n = side.n;
  const std::int64_t last = std::min(column + lanes_, rank + 1);  // what follows is padding
  std::vector<Stream> random;  // one for each column: draws do not depend on how many are taken at a time
  for (std::int64_t k = column; k < last; ++k) random.emplace_back(key(Purpose::prior, which, k));
  const auto draw_precision = [&](std::int64_t k, std::int64_t count, double squares) {
    return static_cast<float>(
        random[k - column].gamma(kPriorShape + 0.5 * count, kPriorRate * square_unit(k) + 0.5 * squares));
  };
  // row minus prior mean, without the old common mean, whose place a new one takes; that has the prior of a row around 0
  for (std::int64_t k = column; k < last; ++k) {
    double sum = 0;
    for (std::int64_t e = 0; e < n; ++e) {
      const float value = k < rank ? side.factors[e * stride + k] : side.bias[e];
      const float residual = value - side.prior[e * stride + k] + side.mean[k];
      side.residuals[e * stride + k] = residual;
      sum += residual;
    }
    side.mean[k] = static_cast<float>(sum / (n + 1) +
                                      random[k - column].normal() / std::sqrt((n + 1) * double{side.precision[k]}));
    double squares = double{side.mean[k]} * side.mean[k];
    for (std::int64_t e = 0; e < n; ++e) {
      float& residual = side.residuals[e * stride + k];
      residual -= side.mean[k];
      squares += double{residual} * residual;
    }
    side.precision[k] = draw_precision(k, n + 1, squares);
  }
  for (std::size_t b = 0; b < side.blocks.size(); ++b) {
    Block& block = side.blocks[b];
    kernels_.gibbs.sample_features({block.bags.offsets, block.bags.entities, block.scale.data(), block.squares.data(),
                                    block.weights.data(), block.bags.n_features},
                                   shape_, side.precision.data(), block.precision.data(),
                                   key(Purpose::features, which, b), column, side.residuals.data());
    for (std::int64_t k = column; k < last; ++k) {
      double squares = 0;
      for (std::int64_t f = 0; f < block.bags.n_features; ++f)
        squares += double{block.weights[f * stride + k]} * block.weights[f * stride + k];
      block.precision[k] = draw_precision(k, block.bags.n_features, squares);
    }
  }
  for (std::int64_t e = 0; e < n; ++e)
    for (std::int64_t k = column; k < last; ++k) {
      const float value = k < rank ? side.factors[e * stride + k] : side.bias[e];
      side.prior[e * stride + k] = value - side.residuals[e * stride + k];
    }
}

void GibbsSampler::draw_noise(Team& team) {
  sum_squares(0, team);
  const Side& user = sides_[0];
  double squares = 0;
  for (std::int64_t u = 0; u < user.n; ++u) squares += user.weight[u] * user.squares[u];
  const double n = static_cast<double>(user.offsets[user.n]);
  shape_.noise_precision = static_cast<float>(
      Stream(key(Purpose::noise, 0)).gamma(kPriorShape + 0.5 * n, kPriorRate * unit_ * unit_ + 0.5 * squares));
  if (noise_degrees_ > 0) {
    draw_weights(0, team);
    sum_squares(1, team);
    draw_weights(1, team);
  }
}

void GibbsSampler::sum_squares(int which, Team& team) {
  const GibbsSide own = view(sides_[which]), other = view(sides_[1 - which]);
  constexpr std::int64_t kParts = 256;
  team.run(kParts, [&](std::int64_t part, int) {
    kernels_.gibbs.squared_errors(own, other, shape_, own.n * part / kParts, own.n * (part + 1) / kParts,
                                  sides_[which].squares.data());
  });
}

void GibbsSampler::draw_weights(int which, Team& team) {
  Side& side = sides_[which];
  const std::uint64_t draw = key(Purpose::weights, which);
  constexpr std::int64_t kParts = 256;
  team.run(kParts, [&](std::int64_t part, int) {
    for (std::int64_t e = side.n * part / kParts; e < side.n * (part + 1) / kParts; ++e) {
      const double n = static_cast<double>(side.offsets[e + 1] - side.offsets[e]);
      side.weight[e] = static_cast<float>(Stream(mix(draw + e)).gamma(
          0.5 * (noise_degrees_ + n), 0.5 * (noise_degrees_ + shape_.noise_precision * side.squares[e])));
    }
  });
}

void GibbsSampler::add_predictions(const std::int32_t* users, const std::int32_t* items, std::int64_t n, float low,
                                   float high, float* sums, Team& team) const {
  const GibbsSide user = view(sides_[0]), item = view(sides_[1]);
  constexpr std::int64_t kBlock = 4096;
  team.run((n + kBlock - 1) / kBlock, [&](std::int64_t block, int) {
    const std::int64_t first = block * kBlock;
    kernels_.gibbs.add_predictions(user, item, shape_, users + first, items + first, std::min(kBlock, n - first), low,
                                   high, sums + first);
  });
}

void GibbsSampler::copy_rows(int which, float* out) const {
  const Side& side = sides_[which];
  for (std::int64_t e = 0; e < side.n; ++e) {
    out = std::copy_n(side.factors.data() + e * shape_.stride, shape_.rank, out);
    *out++ = side.bias[e];
  }
}

void posterior_scores(const Draws& draws, float mean, float low, float high, const std::int64_t* users,
                      const std::int64_t* items, std::int64_t n, float* means, float* deviations, Team& team) {
  constexpr std::int64_t kBlock = 1024;  // pairs, so that a draw's rows are met again in the cache
  team.run((n + kBlock - 1) / kBlock, [&](std::int64_t block, int) {
    const std::int64_t first = block * kBlock, size = std::min(kBlock, n - first), width = draws.rank + 1;
    double sums[kBlock] = {}, squares[kBlock] = {};
    for (std::int64_t s = 0; s < draws.n_draws; ++s)
      for (std::int64_t q = 0; q < size; ++q) {
        const float* const x = draws.users + (s * draws.n_users + users[first + q]) * width;
        const float* const y = draws.items + (s * draws.n_items + items[first + q]) * width;
        float value = mean + x[draws.rank] + y[draws.rank];
        for (std::int64_t k = 0; k < draws.rank; ++k) value += x[k] * y[k];
        value = std::clamp(value, low, high);
        sums[q] += value;
        squares[q] += double{value} * value;
      }
    for (std::int64_t q = 0; q < size; ++q) {
      const double average = sums[q] / draws.n_draws;
      means[first + q] = static_cast<float>(average);
      deviations[first + q] =
          static_cast<float>(std::sqrt(std::max(0.0, squares[q] / draws.n_draws - average * average)));
    }
  });
}

GibbsSide GibbsSampler::view(const Side& side) const {
  return {const_cast<float*>(side.factors.data()), const_cast<float*>(side.bias.data()), side.prior.data(),
          side.precision.data(), side.offsets, side.partners, side.ratings, side.weight.data(), side.n};
}

std::uint64_t GibbsSampler::key(Purpose purpose, int side, std::int64_t part) const {
  const std::uint64_t of_sweep = mix(mix(seed_ + kGolden) + sweep_);
  return mix(mix(of_sweep + 2 * static_cast<std::uint64_t>(purpose) + side) + part);
}

}  // namespace mfdmc
