// The CPU kernels: plain pointers, sizes and strides in, nothing of torch or Python.
//
// Strides count elements. A layout is {B, C, F, H, W} for a video and {B, N, C, K, H, W} for a stack of N
// windows of K frames. Outputs are contiguous. Kernels check nothing: vidsmooth_fast/ops does.
#pragma once

#include <stdint.h>

namespace vidsmooth {

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2 };

struct Operand {  // a video that is read; data is null when absent
    const void* data = nullptr;
    int64_t stride[5] = {0, 0, 0, 0, 0};  // B, C, F, H, W
};

struct NoiseConstraintArgs {
    DType dtype;
    int64_t size[5];  // B, C, F, H, W
    Operand eps, x, reference;
    void* out;
    float c_over_lambda, strength;
    bool loop;
    int threads;
};

}  // namespace vidsmooth

#ifdef VIDSMOOTH_X86
#    define VIDSMOOTH_DECLARE(name, Args) \
        namespace base {                  \
        void name(const Args&);           \
        }                                 \
        namespace avx2 {                  \
        void name(const Args&);           \
        }                                 \
        namespace avx512 {                \
        void name(const Args&);           \
        }
#else
#    define VIDSMOOTH_DECLARE(name, Args) \
        namespace base {                  \
        void name(const Args&);           \
        }
#endif

namespace vidsmooth {
VIDSMOOTH_DECLARE(noise_constraint, NoiseConstraintArgs)
}  // namespace vidsmooth
