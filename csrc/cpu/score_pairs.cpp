#include "cpu/score_pairs.hpp"

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/distinct_rows.hpp"
#include "cpu/team.hpp"
#include "mfdmc/embedding.hpp"

namespace mfdmc {
namespace {

// task(index, member) for each index below n, in tasks of some hundred.
template <typename Task>
void for_blocks(std::int64_t n, Team& team, Task task) {
  constexpr std::int64_t block = 256;
  team.run((n + block - 1) / block, [&](std::int64_t index, int member) {
    for (std::int64_t i = index * block; i < std::min(n, (index + 1) * block); ++i) task(i, member);
  });
}

// The embeddings of the given entities: [rows.size(), embedding_dim].
template <typename T>
std::unique_ptr<T[]> embed_rows(const Side<T>& side, const std::vector<std::int64_t>& rows, Combine combine,
                                Team& team) {
  const std::int64_t n_rows = static_cast<std::int64_t>(rows.size());
  const std::int64_t dim = embedding_dim(side, combine);
  // allocated here, as a task must not throw; a gap of a cache line keeps threads apart
  const std::int64_t stride = side.total_clusters + 64 / static_cast<std::int64_t>(sizeof(T));
  const std::unique_ptr<T[]> weights(new T[team.size() * stride]);  // [members, stride]
  std::unique_ptr<T[]> embeddings(new T[n_rows * dim]);           // [n_rows, dim]
  for_blocks(n_rows, team, [&](std::int64_t r, int member) {
    embed_row(side, rows[r], combine, weights.get() + member * stride, embeddings.get() + r * dim);
  });
  return embeddings;
}

// Several sums side by side, because the compiler may not reorder a single one and so could not vectorise it.
template <typename T>
double dot(const T* a /* [n] */, const T* b /* [n] */, std::int64_t n) {
  constexpr std::int64_t lanes = 8;
  double sums[lanes] = {};
  std::int64_t j = 0;
  for (; j + lanes <= n; j += lanes)
    for (std::int64_t lane = 0; lane < lanes; ++lane)
      sums[lane] += static_cast<double>(a[j + lane]) * static_cast<double>(b[j + lane]);
  double total = 0;
  for (double sum : sums) total += sum;
  for (; j < n; ++j) total += static_cast<double>(a[j]) * static_cast<double>(b[j]);
  return total;
}

}  // namespace

template <typename T>
void score_pairs(const Side<T>& user, const Side<T>& item, double global_mean, const std::int64_t* user_idx,
                 const std::int64_t* item_idx, std::int64_t n_pairs, Combine combine, int n_threads, T* predictions) {
  const DistinctRows users("user_idx", user_idx, n_pairs, user.n_entities);
  const DistinctRows items("item_idx", item_idx, n_pairs, item.n_entities);
  Team& team = Team::mine(n_pairs < 256 ? 1 : n_threads);  // waking the threads would take longer
  const std::unique_ptr<T[]> z_user = embed_rows(user, users.rows(), combine, team);
  const std::unique_ptr<T[]> z_item = embed_rows(item, items.rows(), combine, team);
  const std::int64_t dim = embedding_dim(user, combine);
  for_blocks(n_pairs, team, [&](std::int64_t b, int) {
    const std::int64_t u = user_idx[b], i = item_idx[b];
    double prediction =
        global_mean + dot(z_user.get() + users.position(u) * dim, z_item.get() + items.position(i) * dim, dim);
    if (user.bias) prediction += static_cast<double>(user.bias[u]) + static_cast<double>(item.bias[i]);
    predictions[b] = static_cast<T>(prediction);
  });
}

template void score_pairs<float>(const Side<float>&, const Side<float>&, double, const std::int64_t*,
                                 const std::int64_t*, std::int64_t, Combine, int, float*);
template void score_pairs<double>(const Side<double>&, const Side<double>&, double, const std::int64_t*,
                                  const std::int64_t*, std::int64_t, Combine, int, double*);

}  // namespace mfdmc
