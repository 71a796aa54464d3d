// y = (x - mean) / sqrt(variance + eps) * weight + bias, then y / (1 + e^-y) if asked: statistics over the
// channels of a group and all pixels of `frames` images.
#include "cpu/group_norm.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace vidsmooth::VIDSMOOTH_ISA {
namespace {

using Args = GroupNormSiluArgs;

thread_local Scratch scratch;

struct Rows : Sums {  // of `channels` floats each, and the moments of every group
    float *scale, *offset;
    Moments* moments;

    explicit Rows(const Args& a) {
        const int64_t row = (a.channels + 15) / 16 * 16;
        about = scratch.reserve(5 * row + a.groups * int64_t(sizeof(Moments) / sizeof(float)));
        sum = about + row, squares = sum + row, scale = squares + row, offset = scale + row;
        moments = reinterpret_cast<Moments*>(offset + row);
    }
};

// y = scale x + offset, channel by channel
void prepare(const Args& a, int64_t set, const Rows& rows, const Moments* moments) {
    const int64_t width = a.channels / a.groups;
    for (int64_t g = 0; g < a.groups; ++g) {
        const double variance = moments[g].m2 / moments[g].count;
        const double inverse = 1 / __builtin_sqrt(variance + a.eps);
        for (int64_t c = g * width; c < (g + 1) * width; ++c) {
            const double scale = inverse * (a.weight ? a.weight[c] : 1.f);
            rows.scale[c] = float(scale);
            rows.offset[c] = float((a.bias ? a.bias[c] : 0.f) - moments[g].mean * scale);
        }
    }
}

// y / (1 + e^-y). The exponential function of temporal attention and a division took twice as long.
template <bool Precise>
inline __attribute__((always_inline)) vfloat silu(vfloat y) {
    return divide<Precise>(y, 1.f + exp_of_minus<Precise>(y));
}

template <bool Silu, class T, int N>
inline __attribute__((always_inline)) void normalise(bool stream, const Args& a, const T* x, T* out,
                                                     const Rows& rows) {
    const float *scale = rows.scale, *offset = rows.offset;
    const int64_t stride = a.stride[1], channels = a.channels;
    along_row(stream, channels, [=](auto lanes) {
        const vfloat factor = lanes.load(scale), shift = lanes.load(offset);
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) {
            const vfloat y = lanes.load(x + i * stride) * factor + shift;
            lanes.output(out + i * channels, Silu ? silu<sizeof(T) == 4>(y) : y);
        }
    });
}

template <bool Silu, class T>
void normalise(const Args& a, bool stream, int64_t set, int64_t begin, int64_t end, const Rows& rows) {
    T* out = static_cast<T*>(a.out) + (set * a.frames * a.pixels + begin) * a.channels;
    while (begin < end) {
        const T* x = pixel<T>(a, set, begin);
        int64_t run = least(a.pixels - begin % a.pixels, end - begin);
        begin += run;
        for (; run >= 4; run -= 4, x += 4 * a.stride[1], out += 4 * a.channels)
            normalise<Silu, T, 4>(stream, a, x, out, rows);
        for (; run > 0; --run, x += a.stride[1], out += a.channels)
            normalise<Silu, T, 1>(stream, a, x, out, rows);
    }
    if (stream) finish_streams();
}

template <class T>
void normalise(const Args& a, bool stream, int64_t set, int64_t begin, int64_t end, const Rows& rows) {
    a.silu ? normalise<true, T>(a, stream, set, begin, end, rows)
           : normalise<false, T>(a, stream, set, begin, end, rows);
}

template <class T>
void run(const Args& a) {
    const int64_t sets = a.images / a.frames, pixels = a.frames * a.pixels, work = sets * pixels * a.channels;
    const int64_t useful = work >> 15;  // below 32 Ki elements a thread is woken for less than it costs
    const int threads = int(least(a.threads, useful > 1 ? useful : 1));
    const bool stream = streams(a.out, a.channels * sizeof(T), work * sizeof(T));
    if (threads == 1 || sets >= 2 * threads) {
        parallel_for(threads, sets, [&](int64_t set) {
            const Rows rows(a);
            measure<T>(a, set, 0, pixels, rows, rows.moments);
            prepare(a, set, rows, rows.moments);
            normalise<T>(a, stream, set, 0, pixels, rows);
        });
        return;
    }
    const int64_t pieces = least(4 * threads, (pixels + 63) / 64);
    auto* const moments = static_cast<Moments*>(malloc(pieces * a.groups * sizeof(Moments)));
    if (!moments) abort();
    for (int64_t set = 0; set < sets; ++set) {
        parallel_for(threads, pieces, [&](int64_t i) {
            measure<T>(a, set, pixels * i / pieces, pixels * (i + 1) / pieces, Rows(a),
                       moments + i * a.groups);
        });
        const Rows rows(a);
        for (int64_t i = 1; i < pieces; ++i) {
            for (int64_t g = 0; g < a.groups; ++g) {
                const Moments& m = moments[i * a.groups + g];
                moments[g].join(m.count, m.mean, m.m2);
            }
        }
        prepare(a, set, rows, moments);
        parallel_for(threads, pieces, [&](int64_t i) {  // backwards: what was read last is still in the cache
            const int64_t piece = pieces - 1 - i;
            normalise<T>(a, stream, set, pixels * piece / pieces, pixels * (piece + 1) / pieces, rows);
        });
    }
    free(moments);
}

}  // namespace

void group_norm_silu(const GroupNormSiluArgs& a) {
    switch (a.dtype) {
        case DType::f32:
            return run<float>(a);
        case DType::bf16:
            return run<bf16>(a);
        case DType::f16:
            return run<f16>(a);
    }
}

}  // namespace vidsmooth::VIDSMOOTH_ISA
