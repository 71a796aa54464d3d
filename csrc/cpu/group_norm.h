// What group_norm_silu and its backward share: the statistics of a group, and the exponential in SiLU.
//
// Pixels are rows of all channels, so a group is a short piece of every row: sums are kept per channel,
// vectors running along the row whatever the groups, and channels are put together at the end. They are sums
// of distances from a guessed mean, so that a mean far from zero costs no digits; pieces of up to 256 pixels
// are joined in fp64.
#pragma once

#include "cpu/numbers.h"
#include "cpu/simd.h"

namespace vidsmooth::VIDSMOOTH_ISA {

constexpr int64_t kPiece = 256;  // pixels summed in fp32

// Of one group: how many elements, their mean, and the sum of their squared distances from it.
struct Moments {
    double count, mean, m2;

    void join(double n, double other_mean, double other_m2) {
        const double all = count + n, step = other_mean - mean;
        m2 += other_m2 + step * step * (count * n / all);
        mean += step * (n / all);
        count = all;
    }
};

// Rows of `channels` floats each, while the pixels of a piece are summed.
struct Sums {
    float *about, *sum, *squares;
};

// N pixels to the sums of every channel.
template <class T, int N>
inline __attribute__((always_inline)) void add_up(const T* x, int64_t stride, int64_t channels,
                                                  const Sums& rows) {
    const float* about = rows.about;
    float *sum = rows.sum, *squares = rows.squares;
    along_row<false>(channels, [=](auto lanes) {
        const vfloat centre = lanes.load(about);
        vfloat s = lanes.load(sum), q = lanes.load(squares);
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) {
            const vfloat d = lanes.load(x + i * stride) - centre;
            s += d;
            q += d * d;
        }
        lanes.store(sum, s);
        lanes.store(squares, q);
    });
}

template <class T>
const T* pixel(const GroupNormSiluArgs& a, int64_t set, int64_t at) {
    const int64_t image = set * a.frames + at / a.pixels;
    return static_cast<const T*>(a.x) + image * a.stride[0] + at % a.pixels * a.stride[1];
}

// rows.about: about the mean of every channel over the pixels [begin, begin + n), from 8 of them far apart
template <class T>
void guess(const GroupNormSiluArgs& a, int64_t set, int64_t begin, int64_t n, const Sums& rows) {
    const int64_t samples = least(8, n);
    const float share = 1 / float(samples);
    float* about = rows.about;
    for (int64_t i = 0; i < samples; ++i) {
        const T* x = pixel<T>(a, set, begin + n * i / samples);
        along_row<false>(a.channels, [=](auto lanes) {
            lanes.store(about, (i ? lanes.load(about) : vfloat{}) + share * lanes.load(x));
        });
    }
}

// The moments of the pixels [begin, end) of a set of images, for every group.
template <class T>
void measure(const GroupNormSiluArgs& a, int64_t set, int64_t begin, int64_t end, const Sums& rows,
             Moments* moments) {
    const int64_t width = a.channels / a.groups;
    for (int64_t g = 0; g < a.groups; ++g) moments[g] = {0, 0, 0};
    while (begin < end) {
        const int64_t pixels = least(kPiece, end - begin), stop = begin + pixels;
        guess<T>(a, set, begin, pixels, rows);
        for (int64_t c = 0; c < a.channels; ++c) rows.sum[c] = rows.squares[c] = 0;
        while (begin < stop) {
            const T* x = pixel<T>(a, set, begin);
            int64_t run = least(a.pixels - begin % a.pixels, stop - begin);
            begin += run;
            for (; run >= 4; run -= 4, x += 4 * a.stride[1]) add_up<T, 4>(x, a.stride[1], a.channels, rows);
            for (; run > 0; --run, x += a.stride[1]) add_up<T, 1>(x, a.stride[1], a.channels, rows);
        }
        const double n = double(pixels), each = 1 / n;
        for (int64_t g = 0; g < a.groups; ++g) {
            double mean = 0, m2 = 0;
            for (int64_t c = g * width; c < (g + 1) * width; ++c) mean += rows.about[c] + rows.sum[c] * each;
            mean /= double(width);
            for (int64_t c = g * width; c < (g + 1) * width; ++c) {
                const double s = rows.sum[c], step = rows.about[c] + s * each - mean;
                m2 += rows.squares[c] - s * s * each + n * step * step;
            }
            moments[g].join(n * double(width), mean, m2);
        }
    }
}

// e^-y, as 2^n 2^f with |f| <= 1/2. Precise: to the rounding of fp32, else to a fraction of
// fp16's. The exponential function of temporal attention and a division took twice as long.
template <bool Precise>
inline __attribute__((always_inline)) vfloat exp_of_minus(vfloat y) {
    constexpr float kLog2e = 1.44269504f;
#if defined(__AVX512F__)
    const vfloat x = (vfloat)_mm512_maskz_max_ps(0xffff, (__m512)splat(-87.f), (__m512)y);  // NaN stays NaN
    const vfloat n = (vfloat)_mm512_maskz_roundscale_ps(0xffff, (__m512)(x * -kLog2e), 0);
    const vfloat f = x * -kLog2e - n;
#else
    vfloat x = y < -87.f ? splat(-87.f) : y;
    x = x > 87.f ? splat(87.f) : x;
    const vfloat shift = splat(12582912.f);  // 1.5 * 2^23: a sum with it is rounded to an integer
    const vfloat shifted = x * -kLog2e + shift, n = shifted - shift;
    const vfloat f = x * -kLog2e - n;
#endif
    vfloat e;
    if (Precise) {
        e = f * 1.32647273e-3f + 9.67151299e-3f;
        e = e * f + 5.55073358e-2f;
        e = e * f + 2.40222424e-1f;
        e = e * f + 6.93147004e-1f;
    } else {
        e = f * 9.58285294e-3f + 5.59064262e-2f;
        e = e * f + 2.40240991e-1f;
        e = e * f + 6.93124175e-1f;
    }
    e = e * f + 1.f;
#if defined(__AVX512F__)
    return (vfloat)_mm512_maskz_scalef_ps(0xffff, (__m512)e, (__m512)n);
#else
    return (vfloat)((vuint)e + ((vuint)shifted << 23));
#endif
}

template <bool Precise>
inline __attribute__((always_inline)) vfloat divide(vfloat a, vfloat b) {
#if defined(__AVX512F__)
    vfloat r = (vfloat)_mm512_maskz_rcp14_ps(0xffff, (__m512)b);
    if (Precise) r *= 2.f - b * r;
    return a * r;
#else
    return a / b;
#endif
}

}  // namespace vidsmooth::VIDSMOOTH_ISA
