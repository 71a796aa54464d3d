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

inline vfloat load(const bf16* p) {
    return (vfloat)(__builtin_convertvector(read<vhalf>(p), vuint) << 16);
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
    const vuint h = __builtin_convertvector(read<vhalf>(p), vuint);
    const vuint magnitude = h & 0x7fff;
    const vuint scaled = (vuint)((vfloat)(magnitude << 13) * splat(0x1p112f));  // also right for subnormals
    const vuint special = (magnitude << 13) | 0x7f800000;                       // infinity and NaN
    return (vfloat)(blend((vuint)(magnitude >= 0x7c00), special, scaled) | (h & 0x8000) << 16);
#endif
}

inline vhalf to_half_bits(vfloat v, bf16) {
    const vuint u = (vuint)v;
    const vuint rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    return __builtin_convertvector(blend((vuint)(v != v), (u >> 16) | 0x40, rounded), vhalf);
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
    return __builtin_convertvector(h | (((vuint)v >> 16) & 0x8000), vhalf);
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

// Stores that bypass the caches: they save reading the output before it is overwritten, and pay when the
// output would not stay in the caches anyway. They need aligned addresses.
inline bool streams(int64_t output_bytes) {
    return output_bytes >= int64_t{32} << 20;
}
inline bool aligned(const void* p) {
    return (uintptr_t)p % 64 == 0;
}
inline void finish_streams() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

// out[i] = value(load at i) for a row of n elements; `value(at)` reads its operands by at(pointer).
template <bool Stream, class T, class Value>
inline void fill_row(T* out, int64_t n, const Value& value) {
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) store<Stream>(out + i, value([i](auto* p) { return load(p + i); }));
    if (i < n) store_tail(out + i, value([i, n](auto* p) { return load_tail(p + i, n - i); }), n - i);
}

struct Cached {};  // said instead of a bool where the row is read again soon

template <class T, class Value>
inline void fill_row(Cached, T* out, int64_t n, const Value& value) {
    fill_row<false>(out, n, value);
}

template <class T, class Value>
inline void fill_row(bool stream, T* out, int64_t n, const Value& value) {
    if (stream && aligned(out))
        fill_row<true>(out, n, value);
    else
        fill_row<false>(out, n, value);
}

}  // namespace vidsmooth::VIDSMOOTH_ISA
