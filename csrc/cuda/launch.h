// Launching kernels: the device guard, the error check, and what a host compiler needs to run them in the
// tests.
#pragma once

#include <stdint.h>
#include <string.h>

#include <stdexcept>
#include <string>

#include "cuda/kernels.h"

#ifdef __CUDACC__

#    include <cuda_runtime.h>

namespace vidsmooth::cuda {

inline void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess)
        throw std::runtime_error(std::string(what) + ": CUDA says " + cudaGetErrorString(error));
}

// The caller's device, while this object lives.
class OnDevice {
  public:
    OnDevice(Stream stream, const char* what) : wanted_(stream.device) {
        check(cudaGetDevice(&before_), what);
        if (before_ != wanted_) check(cudaSetDevice(wanted_), what);
    }
    ~OnDevice() {
        if (before_ != wanted_) (void)cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

    int processors() const {
        int count = 0;
        check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, wanted_), "processors");
        return count;
    }

  private:
    int wanted_, before_ = 0;
};

template <class Params>
void launch(const char* what, void (*kernel)(Params), int64_t blocks, int threads, const Params& params,
            Stream stream) {
    if (blocks > INT32_MAX / threads)
        throw std::runtime_error(std::string(what) + ": more than 2^31 threads in one call");
    kernel<<<static_cast<unsigned>(blocks), threads, 0, static_cast<cudaStream_t>(stream.handle)>>>(params);
    check(cudaGetLastError(), what);
}

}  // namespace vidsmooth::cuda

#else
#    include "cuda_emulation.h"  // python_tests/ops: the same sources, one thread after another, on a CPU
#endif
