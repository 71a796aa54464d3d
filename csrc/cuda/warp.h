// The matrix units as a warp uses them: one product of small tiles, each of 32 lanes holding its share.
//
// Lane 4 g + t holds, of a (16, K) times (K, 8) product: rows g and g + 8 of the left tile, column g of the
// right one, and of the result c[0], c[1]: row g, columns 2 t and 2 t + 1; c[2], c[3]: the same of row g + 8.
// Which K a lane holds is in the two functions below; any permutation of K serves when both tiles follow it.
#pragma once

#include "cuda/elements.h"

namespace vidsmooth::cuda {

#ifdef __CUDACC__

__device__ inline int lane() {
    return threadIdx.x % 32;
}

template <class V>
__device__ inline V exchange(V v, int mask) {
    return __shfl_xor_sync(0xffffffffu, v, mask);
}

__device__ inline bool any(bool mine) {
    return __any_sync(0xffffffffu, mine);
}

__device__ inline uint32_t tf32(float v) {
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(v));
    return rounded;
}

// K = 16. a: row g, K 2t and 2t+1; row g+8, the same; row g, K 2t+8 and 2t+9; row g+8. b: K 2t, 2t+1; 2t+8,
// 2t+9.
__device__ inline void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, f16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// K = 8, of numbers with 10 bits of fraction. a: (row g, K t), (g+8, t), (g, t+4), (g+8, t+4). b: K t, t+4.
__device__ inline void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#else
int lane();
float exchange(float v, int mask);
bool any(bool mine);
uint32_t tf32(float v);
void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bf16);
void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, f16);
void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
#endif

// fp32 as the sum of two tf32, to half a unit in its last place. Without the product of the two small parts,
// which many programs leave out, the error is twice that of a plain fp32 product. The units truncate every
// sum: only one that begins with the small parts is left to them, and c is added to it with rounding.
struct Split {
    uint32_t high, low;
};
__device__ inline Split split(float v) {
    const uint32_t high = tf32(v);
    return {high, tf32(v - as_float(high))};
}
__device__ inline void multiply(float (&c)[4], const Split (&a)[4], Split b0, Split b1) {
    const uint32_t high[4] = {a[0].high, a[1].high, a[2].high, a[3].high};
    const uint32_t low[4] = {a[0].low, a[1].low, a[2].low, a[3].low};
    float d[4] = {};
    multiply(d, low, b0.low, b1.low);
    multiply(d, low, b0.high, b1.high);
    multiply(d, high, b0.low, b1.low);
    multiply(d, high, b0.high, b1.high);
#pragma unroll
    for (int i = 0; i < 4; ++i) c[i] += d[i];
}

// Over the four lanes that hold a row.
__device__ inline float row_max(float v) {
    v = fmaxf(v, exchange(v, 1));
    return fmaxf(v, exchange(v, 2));
}
__device__ inline float row_sum(float v) {
    v += exchange(v, 1);
    return v + exchange(v, 2);
}

template <class T>
__device__ inline uint32_t pair(float low, float high) {
    T l, h;
    narrow(low, l);
    narrow(high, h);
    return uint32_t(h.bits) << 16 | l.bits;
}

}  // namespace vidsmooth::cuda
