#include "cpu/fold_in.hpp"

#include "cpu/aligned.hpp"

namespace mfdmc {

void fold_in(const FoldIn& problem, const Kernels& kernels, Team& team) {
  const std::int64_t n = problem.side.n_entities, lanes = kernels.lanes;
  const std::int64_t per_member = fold_in_scratch(problem.side, problem.loss.embedding_dim, lanes);
  AlignedVector<float> scratch(per_member * team.size());
  team.run((n + lanes - 1) / lanes, [&](std::int64_t tile, int member) {
    kernels.fold_in(problem, tile * lanes, tile * lanes + lanes < n ? tile * lanes + lanes : n,
                    scratch.data() + member * per_member);
  });
}

}  // namespace mfdmc
