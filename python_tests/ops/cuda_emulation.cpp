// Rounding, and the matrix units. bindings.cpp also wants the CPU's kernels, which are never called here.
#include <stdlib.h>

#include "cuda/warp.h"

namespace vidsmooth::cuda {

float widen(f16 v) {
    const int exponent = v.bits >> 10 & 31, fraction = v.bits & 1023;
    const float magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                            : exponent == 0 ? ldexpf(float(fraction), -24)
                                            : ldexpf(float(fraction + 1024), exponent - 25);
    return v.bits >> 15 ? -magnitude : magnitude;
}

void narrow(float v, bf16& to) {
    const uint32_t bits = as_bits(v);
    to.bits = v != v ? 0x7fff : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void narrow(float v, f16& to) {
    const uint16_t sign = as_bits(v) >> 16 & 0x8000;
    const float magnitude = fabsf(v);
    if (v != v) {
        to.bits = 0x7fff;
    } else if (magnitude >= 65520) {
        to.bits = sign | 0x7c00;
    } else {
        int exponent = -24;
        if (magnitude > 0) frexpf(magnitude, &exponent);
        const int scale = std::max(exponent - 11, -24);  // of a unit in the last place
        const float units = nearbyintf(ldexpf(magnitude, -scale));
        to.bits = sign | uint16_t(int(units) + ((scale + 24) << 10));
    }
}

uint32_t tf32(float v) {  // to nearest, halves away from zero
    return v != v ? 0x7fffffff : (as_bits(v) + 0x1000) & ~0x1fffu;
}

namespace {

void show(const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    memcpy(warp.shown[lane()], a, 16);
    warp.shown[lane()][4] = b0;
    warp.shown[lane()][5] = b1;
    warp.wait();
}

// left(row, k), right(k, column): elements of the tiles. The units align the products and the accumulator to
// the largest of them, keep 25 bits of fraction, and truncate the sum to fp32 (Fasi and others, PeerJ
// Computer Science 7, e330; Khattak and Mikaitis, arXiv 2512.07004).
template <class Left, class Right>
void add_products(float (&c)[4], int depth, const Left& left, const Right& right) {
    const int g = lane() / 4, t = lane() % 4;
    for (int i = 0; i < 4; ++i) {
        double terms[17] = {c[i]};
        for (int k = 0; k < depth; ++k)
            terms[k + 1] = double(left(g + i / 2 * 8, k)) * right(k, 2 * t + i % 2);
        int top = -1000;
        for (double term : terms)
            if (term != 0) top = std::max(top, ilogb(term));
        double sum = 0;
        for (double term : terms) sum += trunc(ldexp(term, 25 - top));
        sum = ldexp(sum, top - 25);
        c[i] = float(sum);
        if (fabs(c[i]) > fabs(sum)) c[i] = nextafterf(c[i], 0);
    }
    warp.wait();
}

template <class T>
void multiply_halves(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const auto element = [](int lane, int word, int k) {
        return widen(T{uint16_t(warp.shown[lane][word] >> (k % 2 * 16))});
    };
    show(a, b0, b1);
    add_products(
        c, 16, [&](int row, int k) { return element(row % 8 * 4 + k % 8 / 2, row / 8 + k / 8 * 2, k); },
        [&](int k, int column) { return element(column * 4 + k % 8 / 2, 4 + k / 8, k); });
}

}  // namespace

void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bf16) {
    multiply_halves<bf16>(c, a, b0, b1);
}
void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, f16) {
    multiply_halves<f16>(c, a, b0, b1);
}
void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    show(a, b0, b1);
    add_products(
        c, 8, [](int row, int k) { return as_float(warp.shown[row % 8 * 4 + k % 4][row / 8 + k / 4 * 2]); },
        [](int k, int column) { return as_float(warp.shown[column * 4 + k % 4][4 + k / 4]); });
}

}  // namespace vidsmooth::cuda

#define UNUSED(name, Args)                                 \
    void vidsmooth::base::name(const ::vidsmooth::Args&) { \
        abort();                                           \
    }
UNUSED(noise_constraint, NoiseConstraintArgs)
UNUSED(inversion_blend, InversionBlendArgs)
UNUSED(window_merge, WindowMergeArgs)
UNUSED(denoise_step, DenoiseStepArgs)
UNUSED(temporal_attention, TemporalAttentionArgs)
UNUSED(sparse_causal_attention, SparseCausalAttentionArgs)
UNUSED(sparse_causal_attention_backward, SparseCausalAttentionBackwardArgs)
UNUSED(group_norm_silu, GroupNormSiluArgs)
UNUSED(group_norm_silu_backward, GroupNormSiluBackwardArgs)
UNUSED(convolution, ConvolutionArgs)
UNUSED(feed_forward, FeedForwardArgs)
