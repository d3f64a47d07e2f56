#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

namespace mfdmc {

// Number of the calling thread in its parallel region; 0 without OpenMP.
inline int thread_id() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

}  // namespace mfdmc
