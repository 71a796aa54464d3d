// The micro-kernels of attention, on dense fp32 rows; the products use the first few. Vectors run across
// W queries while scores are made, and across the head's columns while values are summed. Rows have `stride`
// floats; what lies beyond a tile's last row or column is read and written freely, and never used.
#pragma once

#include "cpu/simd.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace vidsmooth::VIDSMOOTH_ISA {

template <int W>
struct Vectors {  // GCC drops the attribute from an alias template
    typedef float Lanes __attribute__((vector_size(4 * W)));
    typedef int32_t Bits __attribute__((vector_size(4 * W)));
};
template <int W>
using Lanes = typename Vectors<W>::Lanes;
template <int W>
using Bits = typename Vectors<W>::Bits;

inline int64_t parts(int64_t whole, int64_t part) {
    return (whole + part - 1) / part;
}

template <class T>
ALWAYS_INLINE void widen_row(const T* from, int64_t n, float* to) {
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) store(to + i, load(from + i));
    if (i < n) store(to + i, load_tail(from + i, n - i));
}

template <class T>
ALWAYS_INLINE void narrow_row(const float* from, int64_t n, T* to) {
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) store(to + i, load(from + i));
    if (i < n) store_tail(to + i, load(from + i), n - i);
}

ALWAYS_INLINE void add_row(const float* from, int64_t n, float* to) {
    for (int64_t i = 0; i + kWidth <= n; i += kWidth) store(to + i, load(to + i) + load(from + i));
}

// e^x for x <= 0 within 1 unit in the last place down to e^-87 = 1.6e-38, where it stays.
template <int W>
ALWAYS_INLINE Lanes<W> exp_negative(Lanes<W> x) {
    const Lanes<W> lowest = Lanes<W>{} - 87.f;
    const Lanes<W> shift = Lanes<W>{} + 12582912.f;  // 1.5 * 2^23: a sum with it is rounded to an integer
    x = x < lowest ? lowest : x;
    Lanes<W> n = x * 1.44269504f + shift;
    const Bits<W> exponent = (Bits<W>)n << 23;
    n -= shift;
    const Lanes<W> r = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // ln 2 in two parts
    Lanes<W> y = r * 1.98412698e-4f + 1.38888889e-3f;
    y = y * r + 8.33333333e-3f;
    y = y * r + 4.16666667e-2f;
    y = y * r + 1.66666667e-1f;
    y = y * r + 0.5f;
    y = y * r + 1.f;
    y = y * r + 1.f;
    return (Lanes<W>)((Bits<W>)y + exponent);
}

#if defined(__AVX2__)
ALWAYS_INLINE void store_columns(__m256 r0, __m256 r1, __m256 r2, __m256 r3, float* to) {
    const __m256 low01 = _mm256_unpacklo_ps(r0, r1), high01 = _mm256_unpackhi_ps(r0, r1);
    const __m256 low23 = _mm256_unpacklo_ps(r2, r3), high23 = _mm256_unpackhi_ps(r2, r3);
    _mm256_storeu_ps(to, _mm256_shuffle_ps(low01, low23, 0x44));
    _mm256_storeu_ps(to + 8, _mm256_shuffle_ps(low01, low23, 0xee));
    _mm256_storeu_ps(to + 16, _mm256_shuffle_ps(high01, high23, 0x44));
    _mm256_storeu_ps(to + 24, _mm256_shuffle_ps(high01, high23, 0xee));
}
// columns 0..4 of rows 0 and 4
ALWAYS_INLINE __m256 rows_apart(const float* x, int64_t stride, __m256) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(x)), _mm_loadu_ps(x + 4 * stride), 1);
}
#endif
#if defined(__AVX512F__)
// The zero-masked forms, because GCC 12 warns that the plain ones use an uninitialised value.
ALWAYS_INLINE void store_columns(__m512 r0, __m512 r1, __m512 r2, __m512 r3, float* to) {
    const __mmask16 all = 0xffff;
    const __m512 low01 = _mm512_maskz_unpacklo_ps(all, r0, r1),
                 high01 = _mm512_maskz_unpackhi_ps(all, r0, r1);
    const __m512 low23 = _mm512_maskz_unpacklo_ps(all, r2, r3),
                 high23 = _mm512_maskz_unpackhi_ps(all, r2, r3);
    _mm512_storeu_ps(to, _mm512_maskz_shuffle_ps(all, low01, low23, 0x44));
    _mm512_storeu_ps(to + 16, _mm512_maskz_shuffle_ps(all, low01, low23, 0xee));
    _mm512_storeu_ps(to + 32, _mm512_maskz_shuffle_ps(all, high01, high23, 0x44));
    _mm512_storeu_ps(to + 48, _mm512_maskz_shuffle_ps(all, high01, high23, 0xee));
}
// columns 0..4 of rows 0, 4, 8 and 12
ALWAYS_INLINE __m512 rows_apart(const float* x, int64_t stride, __m512) {
    __m512 r = _mm512_zextps128_ps512(_mm_loadu_ps(x));
    r = _mm512_maskz_insertf32x4(0xffff, r, _mm_loadu_ps(x + 4 * stride), 1);
    r = _mm512_maskz_insertf32x4(0xffff, r, _mm_loadu_ps(x + 8 * stride), 2);
    return _mm512_maskz_insertf32x4(0xffff, r, _mm_loadu_ps(x + 12 * stride), 3);
}
#endif

// to[c][i] = from[i][c] for W rows i and c < d, rounded up to 4
template <int W>
ALWAYS_INLINE void transpose(const float* from, int64_t stride, int64_t d, float* to) {
    for (int64_t c = 0; c < d; c += 4) {
        if constexpr (W >= 8) {
            const float* x = from + c;
            const Lanes<W> any = {};
            store_columns(rows_apart(x, stride, any), rows_apart(x + stride, stride, any),
                          rows_apart(x + 2 * stride, stride, any), rows_apart(x + 3 * stride, stride, any),
                          to + c * W);
        } else {
            for (int column = 0; column < 4; ++column)
                for (int i = 0; i < W; ++i) to[(c + column) * W + i] = from[i * stride + c + column];
        }
    }
}

// scores[j][0..W) = sum_c k[j][c] qt[c][0..W) for N keys j. Summed in blocks of 32 columns, which keeps the
// rounding error of wide heads near that of PyTorch's blocked products.
template <int W, int N>
ALWAYS_INLINE void score_tile(const float* qt, const float* k, int64_t stride, int64_t d, float* scores) {
    for (int64_t begin = 0; begin < d; begin += 32) {
        const int64_t end = begin + 32 < d ? begin + 32 : d;
        Lanes<W> sum[N] = {};
        for (int64_t c = begin; c < end; ++c) {
            const auto x = read<Lanes<W>>(qt + c * W);
#pragma GCC unroll 8
            for (int j = 0; j < N; ++j) sum[j] += x * k[j * stride + c];
        }
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) {
            if (begin) sum[j] += read<Lanes<W>>(scores + j * W);
            __builtin_memcpy(scores + j * W, &sum[j], 4 * W);
        }
    }
}

template <int W>
ALWAYS_INLINE void score_tile(int n, const float* qt, const float* k, int64_t stride, int64_t d,
                              float* scores) {
    switch (n) {
        case 1:
            return score_tile<W, 1>(qt, k, stride, d, scores);
        case 2:
            return score_tile<W, 2>(qt, k, stride, d, scores);
        case 3:
            return score_tile<W, 3>(qt, k, stride, d, scores);
        case 4:
            return score_tile<W, 4>(qt, k, stride, d, scores);
        case 5:
            return score_tile<W, 5>(qt, k, stride, d, scores);
        case 6:
            return score_tile<W, 6>(qt, k, stride, d, scores);
        case 7:
            return score_tile<W, 7>(qt, k, stride, d, scores);
        default:
            return score_tile<W, 8>(qt, k, stride, d, scores);
    }
}

// p[j][0..W) <- factor * softmax over j of scale * p[j][0..W)
template <int W>
ALWAYS_INLINE void softmax(float* p, int64_t keys, float scale, Lanes<W> factor) {
    Lanes<W> top = read<Lanes<W>>(p) * scale, sum = {};
    for (int64_t j = 1; j < keys; ++j) {
        const Lanes<W> x = read<Lanes<W>>(p + j * W) * scale;
        top = x > top ? x : top;
    }
    for (int64_t j = 0; j < keys; ++j) {
        const Lanes<W> x = exp_negative<W>(read<Lanes<W>>(p + j * W) * scale - top);
        sum += x;
        __builtin_memcpy(p + j * W, &x, 4 * W);
    }
    factor /= sum;
    for (int64_t j = 0; j < keys; ++j) {
        const Lanes<W> x = read<Lanes<W>>(p + j * W) * factor;
        __builtin_memcpy(p + j * W, &x, 4 * W);
    }
}

// out[i][0..M*W) (+)= sum_j p[j][i] v[j][0..M*W) for N queries i; the rows of p are Q long
template <int Q, int W, int N, int M>
ALWAYS_INLINE void value_tile(const float* p, const float* v, int64_t stride, int64_t keys, float* out,
                              bool add) {
    Lanes<W> sum[N][M] = {};
    if (add) {
        for (int i = 0; i < N; ++i)
            for (int m = 0; m < M; ++m) sum[i][m] = read<Lanes<W>>(out + i * stride + m * W);
    }
    for (int64_t j = 0; j < keys; ++j) {
        Lanes<W> x[M];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) x[m] = read<Lanes<W>>(v + j * stride + m * W);
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i)
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) sum[i][m] += x[m] * p[j * Q + i];
    }
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i)
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) __builtin_memcpy(out + i * stride + m * W, &sum[i][m], 4 * W);
}

// All d columns, in tiles as wide as the registers hold: 5 vectors of 32, or 3 of 16; the last may be half a
// vector. Columns beyond d belong to the next head, which is computed later, or to the row's padding.
template <int Q, int N>
ALWAYS_INLINE void value_rows(const float* p, const float* v, int64_t stride, int64_t keys, int64_t d,
                              float* out, bool add) {
    constexpr int W = kWidth, widest = kWidth == 16 ? 5 : 3;
    while (d > 0) {
        const int64_t vectors = (d + W / 2 - 1) / W;  // a tail of up to W/2 columns is left for half a vector
        const int m = vectors ? int(parts(vectors, parts(vectors, widest))) : 0;
        switch (m) {
            case 0:
                return value_tile<Q, W / 2, N, 1>(p, v, stride, keys, out, add);
            case 1:
                value_tile<Q, W, N, 1>(p, v, stride, keys, out, add);
                break;
            case 2:
                value_tile<Q, W, N, 2>(p, v, stride, keys, out, add);
                break;
            case 3:
                value_tile<Q, W, N, 3>(p, v, stride, keys, out, add);
                break;
            case 4:
                value_tile<Q, W, N, widest == 5 ? 4 : 3>(p, v, stride, keys, out, add);
                break;
            default:
                value_tile<Q, W, N, widest>(p, v, stride, keys, out, add);
                break;
        }
        v += m * W;
        out += m * W;
        d -= m * W;
    }
}

template <int Q>
ALWAYS_INLINE void value_rows(int n, const float* p, const float* v, int64_t stride, int64_t keys, int64_t d,
                              float* out, bool add) {
    switch (n) {
        case 1:
            return value_rows<Q, 1>(p, v, stride, keys, d, out, add);
        case 2:
            return value_rows<Q, 2>(p, v, stride, keys, d, out, add);
        case 3:
            return value_rows<Q, 3>(p, v, stride, keys, d, out, add);
        default:
            return value_rows<Q, 4>(p, v, stride, keys, d, out, add);
    }
}

}  // namespace vidsmooth::VIDSMOOTH_ISA
