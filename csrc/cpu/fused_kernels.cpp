#include "cpu/fused_kernels.hpp"

#include <cstring>

namespace mfdmc {
namespace {

bool can_run(const Kernels& kernels) {
#ifdef __x86_64__
  __builtin_cpu_init();
  if (&kernels == &kernels_avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (&kernels == &kernels_avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
#endif
  return &kernels == &kernels_baseline;
}

}  // namespace

const Kernels* choose_kernels(const char* name_or_null) {
  const Kernels* const sets[] = {
#ifdef __x86_64__
      &kernels_avx512, &kernels_avx2,
#endif
      &kernels_baseline};
  for (const Kernels* kernels : sets)
    if ((!name_or_null || !std::strcmp(name_or_null, kernels->name)) && can_run(*kernels)) return kernels;
  return nullptr;
}

}  // namespace mfdmc
