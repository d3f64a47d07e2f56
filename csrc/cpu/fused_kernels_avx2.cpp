#define MFDMC_VECTOR_BYTES 32
#include "cpu/fold_in_impl.hpp"
#include "cpu/fused_kernels_impl.hpp"
#include "cpu/gibbs_kernels_impl.hpp"

namespace mfdmc {

const Kernels kernels_avx2 = {"avx2", kLanes, entity_forward, rating_pass, item_sums, entity_backward,
                              catch_up, weight_sums, short_permutations,
                              {sample_rows, sample_features, squared_errors, add_predictions}, fold_in_rows};

}  // namespace mfdmc
