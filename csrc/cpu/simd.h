// Vectors of floats as wide as the instruction set this file is compiled for, loaded from and stored to fp32,
// bf16 and fp16. GCC and Clang vector extensions carry the arithmetic; intrinsics only what they cannot say.
//
// Files that include this are compiled once per instruction set. They must not use inline functions of the
// standard library: the linker keeps one copy of such a function for all variants, perhaps the AVX-512 one.
#pragma once

#include <stdint.h>

#include "cpu/kernels.h"

#if defined(__x86_64__)
#    include <immintrin.h>
#endif

namespace vidsmooth::VIDSMOOTH_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

using vfloat = float __attribute__((vector_size(4 * kWidth)));
using vuint = uint32_t __attribute__((vector_size(4 * kWidth)));
using vhalf = uint16_t __attribute__((vector_size(2 * kWidth)));

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

template <class V, class P>
inline V read(const P* p) {
    V v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

inline vfloat splat(float value) {
    return vfloat{} + value;
}

inline vuint blend(vuint mask, vuint yes, vuint no) {
    return (mask & yes) | (~mask & no);
}

inline vfloat load(const float* p) {
    return read<vfloat>(p);
}

// GCC 12 converts vectors in halves that it then puts together; the instructions below do it at once.
inline vuint widen(vhalf h) {
#if defined(__AVX512F__)
    return (vuint)_mm512_cvtepu16_epi32((__m256i)h);
#elif defined(__AVX2__)
    return (vuint)_mm256_cvtepu16_epi32((__m128i)h);
#else
    return __builtin_convertvector(h, vuint);
#endif
}

inline vhalf narrow(vuint u) {  // each element below 65536
#if defined(__AVX512F__)
    return (vhalf)_mm512_cvtepi32_epi16((__m512i)u);
#elif defined(__AVX2__)
    const __m256i pairs = _mm256_packus_epi32((__m256i)u, (__m256i)u);
    return (vhalf)_mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0x08));
#else
    return __builtin_convertvector(u, vhalf);
#endif
}

inline vfloat load(const bf16* p) {
    return (vfloat)(widen(read<vhalf>(p)) << 16);
}

inline vfloat load(const f16* p) {
#if defined(__AVX512F__)
    return (vfloat)_mm512_cvtph_ps(read<__m256i>(p));
#elif defined(__F16C__)
    return (vfloat)_mm256_cvtph_ps(read<__m128i>(p));
#elif defined(__aarch64__)
    using vnative = __fp16 __attribute__((vector_size(2 * kWidth)));
    return __builtin_convertvector(read<vnative>(p), vfloat);
#else
    const vuint h = widen(read<vhalf>(p));
    const vuint magnitude = h & 0x7fff;
    const vuint scaled = (vuint)((vfloat)(magnitude << 13) * splat(0x1p112f));  // also right for subnormals
    const vuint special = (magnitude << 13) | 0x7f800000;                       // infinity and NaN
    return (vfloat)(blend((vuint)(magnitude >= 0x7c00), special, scaled) | (h & 0x8000) << 16);
#endif
}

inline vhalf to_half_bits(vfloat v, bf16) {
    const vuint u = (vuint)v;
    const vuint rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    return narrow(blend((vuint)(v != v), (u >> 16) | 0x40, rounded));
}

inline vhalf to_half_bits(vfloat v, f16) {
#if defined(__AVX512F__)
    return (vhalf)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
    return (vhalf)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
    using vnative = __fp16 __attribute__((vector_size(2 * kWidth)));
    return read<vhalf>(&(const vnative&)__builtin_convertvector(v, vnative));
#else
    const vuint u = (vuint)v & 0x7fffffff;
    const vuint normal = (u - (112u << 23) + 0xfff + ((u >> 13) & 1)) >> 13;
    const vuint subnormal = (vuint)((vfloat)u + splat(0.5f)) - 0x3f000000;  // the sum rounds at 2^-24
    const vuint special = blend((vuint)(u > 0x7f800000), vuint{} + 0x7e00, vuint{} + 0x7c00);
    vuint h = blend((vuint)(u < 0x38800000), subnormal, normal);
    h = blend((vuint)(u >= 0x47800000), special, h);
    return narrow(h | (((vuint)v >> 16) & 0x8000));
#endif
}

template <bool Stream = false>
inline void store(float* p, vfloat v) {
#if defined(__AVX512F__)
    if (Stream) return _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX2__)
    if (Stream) return _mm256_stream_ps(p, (__m256)v);
#elif defined(__x86_64__)
    if (Stream) return _mm_stream_ps(p, (__m128)v);
#endif
    __builtin_memcpy(p, &v, sizeof v);
}

template <bool Stream = false, class T>
inline void store(T* p, vfloat v) {
    const vhalf bits = to_half_bits(v, T{});
#if defined(__AVX512F__)
    if (Stream) return _mm256_stream_si256((__m256i*)p, (__m256i)bits);
#elif defined(__AVX2__)
    if (Stream) return _mm_stream_si128((__m128i*)p, (__m128i)bits);
#endif
    __builtin_memcpy(p, &bits, sizeof bits);
}

// The last n < kWidth elements of a row.
template <class T>
inline vfloat load_tail(const T* p, int64_t n) {
    T padded[kWidth] = {};
    for (int64_t i = 0; i < n; ++i) padded[i] = p[i];
    return load(padded);
}

template <class T>
inline void store_tail(T* p, vfloat v, int64_t n) {
    T padded[kWidth];
    store<false>(padded, v);
    for (int64_t i = 0; i < n; ++i) p[i] = padded[i];
}

// Stores that bypass the caches save reading the output before it is overwritten, and pay when the output
// would not stay in the caches anyway. They need aligned addresses.
inline bool streams(int64_t output_bytes) {
    return output_bytes >= int64_t{32} << 20;
}
inline bool aligned(const void* p) {
    return (uintptr_t)p % 64 == 0;
}
inline bool streams(const void* out, int64_t frame_bytes, int64_t output_bytes) {  // every row of every frame
    return streams(output_bytes) && aligned(out) && frame_bytes % 64 == 0;
}
inline void finish_streams() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

// Where in a row the loop below stands: at kWidth elements, or at the last few of the row.
template <bool Stream>
struct RowStep {
    int64_t i;

    template <class T>
    vfloat load(const T* row) const {
        return vidsmooth::VIDSMOOTH_ISA::load(row + i);
    }
    template <class T>
    void store(T* row, vfloat v) const {
        vidsmooth::VIDSMOOTH_ISA::store(row + i, v);
    }
    template <class T>
    void output(T* row, vfloat v) const {
        vidsmooth::VIDSMOOTH_ISA::store<Stream>(row + i, v);
    }
    // Rows are short and far apart, too short for the processor to guess the next: 12.3 ms became 7.7 for the
    // noise constraint on 64 MB with one thread.
    template <class T>
    void prefetch(const T* row) const {
        if (i * sizeof(T) % 64 == 0) __builtin_prefetch(row + i, 0, 2);
    }
};

struct RowEnd {
    int64_t i, count;

    template <class T>
    vfloat load(const T* row) const {
        return load_tail(row + i, count);
    }
    template <class T>
    void store(T* row, vfloat v) const {
        store_tail(row + i, v, count);
    }
    template <class T>
    void output(T* row, vfloat v) const {
        store_tail(row + i, v, count);
    }
    template <class T>
    void prefetch(const T*) const {}
};

// Calls body(lanes) along a row of n elements. `output` bypasses the caches if Stream, `store` never does.
template <bool Stream, class Body>
inline void along_row(int64_t n, Body body) {
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) body(RowStep<Stream>{i});
    if (i < n) body(RowEnd{i, n - i});
}

template <class Body>
inline void along_row(bool stream, int64_t n, Body body) {
    stream ? along_row<true>(n, body) : along_row<false>(n, body);
}

}  // namespace vidsmooth::VIDSMOOTH_ISA
