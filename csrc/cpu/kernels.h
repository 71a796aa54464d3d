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

struct InversionBlendArgs {
    DType dtype;
    int64_t size[5];  // B, C, F, H, W
    Operand inverted, noise;
    void* out;
    float weight, forward, backward;
    bool loop;
    int threads;
};

// N overlapping windows, one or more guidance branches of them, and which of them contain which frame.
struct WindowStack {
    const void* data;
    int64_t stride[6];  // B, N, C, K, H, W
    int64_t length;     // K
    int64_t branches, branch_stride;
    const float* branch_weights;  // [branches]
    const float* weights;
    int64_t weight_stride[4];  // C, K, H, W
    // Frame f is frame position[i] of window window[i] for each i in [first[f], first[f + 1]).
    const int64_t *first, *window, *position;  // [F + 1], [N K], [N K]
};

struct WindowMergeArgs {
    DType dtype;
    int64_t size[5];  // B, C, F, H, W of the result
    WindowStack windows;
    void* out;
    int threads;
};

struct DenoiseStepArgs {
    DType dtype;      // of the predictions; everything else is fp32
    int64_t size[5];  // B, C, F, H, W of x
    WindowStack pred;
    Operand x, history, reference, noise;
    float a, b, c, noise_scale;
    float to_eps[2], to_clean[2];
    float c_over_lambda, strength;
    bool loop;
    float* out;
    float* clean;  // null when not wanted
    int threads;
};

struct TemporalAttentionArgs {
    DType dtype;
    int64_t batch, frames, pixels, heads, width;  // width: d, columns of one head
    const void* in[3];                            // q, k, v: (batch*frames, pixels, heads*width)
    int64_t stride[3][2];                         // of each, from frame to frame and from pixel to pixel
    void* out;                                    // likewise, contiguous
    float scale;
    int64_t windows, window;  // N windows of K frames; one of all frames for plain attention
    const int64_t* starts;    // N, in [0, frames); a window may run past the last frame into the first ones
    const float*
        factors;  // (N, K): weight of each window's result in its frame; null means 1, without overlap
    int threads;
};

struct GroupNormSiluArgs {
    DType dtype;
    // Statistics over channels / groups channels and all pixels of `frames` images.
    int64_t images, frames, pixels, channels, groups;
    const void* x;               // (images, pixels, channels)
    int64_t stride[2];           // from image to image and from pixel to pixel
    const float *weight, *bias;  // (channels); null means 1 and 0
    void* out;                   // like x, contiguous
    float eps;
    bool silu;
    int threads;
};

struct GroupNormSiluBackwardArgs {
    GroupNormSiluArgs of;    // weight and bias not null; out: the gradient of x
    const void* grad;        // (images, pixels, channels)
    int64_t grad_stride[2];  // from image to image and from pixel to pixel
    double* sums;            // (images / frames, 2, channels): gradients of bias and weight, for every set
};

struct ConvolutionArgs {                                       // 3 x 3, stride 1, zeros around
    DType dtype;                                               // of x, weight and out
    int64_t images, height, width, in_channels, out_channels;  // channels: multiples of 16
    const void* x;                                             // (images, height, width, in_channels)
    int64_t stride[3];   // from image to image, row to row and pixel to pixel
    const void* weight;  // (out_channels, 3, 3, in_channels)
    const float* bias;   // (out_channels)
    void* out;           // (images, height, width, out_channels)
    int threads;
};

struct FeedForwardArgs {  // y = (h * gelu(g)) weight_out^T + bias_out, (h, g) = x weight_in^T + bias_in
    DType dtype;          // fp32; bf16 where the instruction set multiplies it
    int64_t rows, in, hidden, out;           // in, hidden, out: multiples of 16
    const void *x, *weight_in, *weight_out;  // (rows, in), (2 hidden, in), (out, hidden)
    const float *bias_in, *bias_out;         // (2 hidden), (out)
    void* y;                                 // (rows, out)
    int threads;
};

struct SparseCausalAttentionArgs {
    DType dtype;
    int64_t batch, frames, pixels, heads, width;  // width: d, columns of one head
    int64_t key_frames, key_pixels;               // what k and v have for frames and pixels
    const void* in[3];                            // q: (batch*frames, pixels, heads*width); k, v likewise
    int64_t stride[3][2];                         // of each, from frame to frame and from pixel to pixel
    void* out;                                    // like q, contiguous
    float scale;
    // Frame f reads the frames key[n] for n in [first[f], first[f + 1]), each once; bias[n] is the logarithm
    // of how often that frame counts.
    const int64_t *first, *key;
    const float* bias;
    int threads;
};

struct SparseCausalAttentionBackwardArgs {
    SparseCausalAttentionArgs of;  // out: the gradient of q
    const void* grad;              // like q
    int64_t grad_stride[2];        // from frame to frame and from pixel to pixel
    void *to_k, *to_v;             // like k and v, contiguous
    float* parts;  // (2, batch, first[frames], pixels, heads*width); null: no gradients of k and v
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
        }                                 \
        namespace avx512_bf16 {           \
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
VIDSMOOTH_DECLARE(inversion_blend, InversionBlendArgs)
VIDSMOOTH_DECLARE(window_merge, WindowMergeArgs)
VIDSMOOTH_DECLARE(denoise_step, DenoiseStepArgs)
VIDSMOOTH_DECLARE(temporal_attention, TemporalAttentionArgs)
VIDSMOOTH_DECLARE(sparse_causal_attention, SparseCausalAttentionArgs)
VIDSMOOTH_DECLARE(sparse_causal_attention_backward, SparseCausalAttentionBackwardArgs)
VIDSMOOTH_DECLARE(group_norm_silu, GroupNormSiluArgs)
VIDSMOOTH_DECLARE(convolution, ConvolutionArgs)
VIDSMOOTH_DECLARE(feed_forward, FeedForwardArgs)
VIDSMOOTH_DECLARE(group_norm_silu_backward, GroupNormSiluBackwardArgs)
}  // namespace vidsmooth
