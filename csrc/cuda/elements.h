// Elements of fp32, bf16 and fp16 as packs of up to 16 bytes, and their fp32 values.
#pragma once

#include <stdint.h>

#include "cuda/launch.h"

namespace vidsmooth::cuda {

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

__device__ inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
__device__ inline uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

__device__ inline float widen(float v) {
    return v;
}
__device__ inline float widen(bf16 v) {
    return as_float(uint32_t(v.bits) << 16);
}
#ifdef __CUDACC__
__device__ inline float widen(f16 v) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
    return wide;
}
__device__ inline void narrow(float v, bf16& to) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(v));
}
__device__ inline void narrow(float v, f16& to) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(v));
}
#else
float widen(f16 v);
void narrow(float v, bf16& to);
void narrow(float v, f16& to);
#endif
__device__ inline void narrow(float v, float& to) {
    to = v;
}

// body(element), element of the type that the code names
template <class Body>
void by_dtype(DType dtype, const Body& body) {
    switch (dtype) {
        case DType::f32:
            return body(float{});
        case DType::bf16:
            return body(bf16{});
        case DType::f16:
            return body(f16{});
    }
}

template <class T, int V>
struct alignas(V * sizeof(T)) Pack {
    T at[V];
};

template <int V>
struct Floats {
    float at[V] = {};
};

// Reads what no thread writes: elements that are wanted once, past the L1 cache; other ones keep a place
// there. Spelled out, because of a pointer to 16-bit elements the compiler knows no better alignment: it
// would read bytes.
template <class T, int V, bool Again = false>
__device__ inline Pack<T, V> load(const T* p) {
    if constexpr (V * sizeof(T) == 16) {
        uint4 raw;
#ifdef __CUDACC__
        if constexpr (Again)
            asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                : "=r"(raw.x), "=r"(raw.y), "=r"(raw.z), "=r"(raw.w)
                : "l"(p));
        else
            asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                : "=r"(raw.x), "=r"(raw.y), "=r"(raw.z), "=r"(raw.w)
                : "l"(p));
#else
        raw = *reinterpret_cast<const uint4*>(p);
#endif
        Pack<T, V> pack;
        memcpy(&pack, &raw, 16);
        return pack;
    } else {
        return *reinterpret_cast<const Pack<T, V>*>(p);
    }
}

template <class T, int V>
__device__ inline Floats<V> values(const Pack<T, V>& pack) {
    Floats<V> v;
#pragma unroll
    for (int i = 0; i < V; ++i) v.at[i] = widen(pack.at[i]);
    return v;
}

template <class T, int V>
__device__ inline void store(T* p, const Floats<V>& v) {
    Pack<T, V> pack;
#pragma unroll
    for (int i = 0; i < V; ++i) narrow(v.at[i], pack.at[i]);
    if constexpr (sizeof pack == 16) {
        uint4 raw;
        memcpy(&raw, &pack, 16);
#ifdef __CUDACC__
        asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                     :
                     : "l"(p), "r"(raw.x), "r"(raw.y), "r"(raw.z), "r"(raw.w)
                     : "memory");
#else
        *reinterpret_cast<uint4*>(p) = raw;
#endif
    } else {
        *reinterpret_cast<Pack<T, V>*>(p) = pack;
    }
}

// sum += factor * v
template <int V>
__device__ inline void add(Floats<V>& sum, float factor, const Floats<V>& v) {
#pragma unroll
    for (int i = 0; i < V; ++i) sum.at[i] += factor * v.at[i];
}

}  // namespace vidsmooth::cuda
