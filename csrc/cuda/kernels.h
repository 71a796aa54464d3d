// The CUDA kernels, with the arguments of the CPU's (cpu/kernels.h; `threads` is ignored). Pointers are
// device memory, except those that say otherwise below. A call launches one kernel and returns: it allocates
// nothing, waits for nothing and copies nothing, so it can be captured in a graph. It throws
// std::runtime_error with CUDA's text.
#pragma once

#include "cpu/kernels.h"

namespace vidsmooth::cuda {

struct Stream {
    int device;
    void* handle;  // cudaStream_t
};

constexpr int kBranches = 8;       // guidance branches at most
constexpr int kWindows = 512;      // windows of temporal_attention at most; they travel with the launch
constexpr int kWindowFrames = 64;  // frames of one attention window at most

// In WindowStack, branch_weights is host memory. first, window and position are int64 on the device.
void noise_constraint(const NoiseConstraintArgs&, Stream);
void inversion_blend(const InversionBlendArgs&, Stream);
void window_merge(const WindowMergeArgs&, Stream);
void denoise_step(const DenoiseStepArgs&, Stream);
// starts is host memory. factors: the window's weights (K), not their shares of the sum.
void temporal_attention(const TemporalAttentionArgs&, Stream);

}  // namespace vidsmooth::cuda
