#include "cuda/block.hpp"
#include "cuda/kernels.hpp"

namespace mfdmc::cuda {

#ifdef MFDMC_EMULATE
std::string device_problem() { return ""; }
#else
std::string device_problem() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) return cudaGetErrorString(status);
  return count ? "" : "no CUDA device is visible";
}
#endif

}  // namespace mfdmc::cuda
