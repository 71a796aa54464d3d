// Gradients of group_norm_silu. With d = x - mean, r = 1 / sqrt(variance + eps), y = r d weight + bias, and g
// the gradient of y (after SiLU's derivative), for a group of n elements:
//
//     dx = r weight g - r S1 / n - r^3 d S2 / n,    S1 = sum weight g,  S2 = sum weight g d
//     dbias = sum g,    dweight = r sum g d
//
// Three passes over the images of a set: the statistics, the sums, the result. y, the exponential in it and g
// are computed twice and never written: reading x again costs less than another image in memory.
#include "cpu/group_norm.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace vidsmooth::VIDSMOOTH_ISA {
namespace {

using Args = GroupNormSiluBackwardArgs;

constexpr int64_t kSummed = 8;  // pixels whose gradients are summed in fp32

thread_local Scratch scratch;

// Of a set, for every channel: y = scale (x - centre) + offset, and dx = scale g - slope (x - centre) -
// shift. centre is the mean rounded to fp32; offset and shift hold what was lost.
struct Layer {
    float *centre, *scale, *offset, *slope, *shift;

    explicit Layer(float* memory, int64_t row)
        : centre(memory),
          scale(memory + row),
          offset(memory + 2 * row),
          slope(memory + 3 * row),
          shift(memory + 4 * row) {}
};

template <bool Silu, bool Precise>
inline __attribute__((always_inline)) vfloat through_silu(vfloat grad, vfloat y) {
    if (!Silu) return grad;
    const vfloat e = exp_of_minus<Precise>(y), s = 1.f / (1.f + e);
    return grad * s * (1.f + y * (e * s));  // e s = 1 - s, without losing its digits where s is near 1
}

// Calls body(x, grad, run) with runs of neighbouring pixels of one image.
template <class T, class Body>
void over_runs(const Args& a, int64_t set, int64_t begin, int64_t end, const Body& body) {
    const int64_t pixels = a.of.pixels;
    while (begin < end) {
        const int64_t image = set * a.of.frames + begin / pixels, first = begin % pixels;
        const int64_t run = least(pixels - first, end - begin);
        body(pixel<T>(a.of, set, begin),
             static_cast<const T*>(a.grad) + image * a.grad_stride[0] + first * a.grad_stride[1], run);
        begin += run;
    }
}

template <bool Silu, class T, int N>
inline __attribute__((always_inline)) void add_up(const Args& a, const T* x, const T* grad,
                                                  const Layer& layer, float* sum, float* product) {
    const float *centre = layer.centre, *scale = layer.scale, *offset = layer.offset;
    const int64_t stride = a.of.stride[1], grad_stride = a.grad_stride[1];
    along_row<false>(a.of.channels, [=](auto lanes) {
        const vfloat middle = lanes.load(centre), factor = lanes.load(scale), start = lanes.load(offset);
        vfloat s = lanes.load(sum), p = lanes.load(product);
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) {
            const vfloat d = lanes.load(x + i * stride) - middle;
            const vfloat g =
                through_silu<Silu, sizeof(T) == 4>(lanes.load(grad + i * grad_stride), d * factor + start);
            s += g;
            p += g * d;
        }
        lanes.store(sum, s);
        lanes.store(product, p);
    });
}

// sums[0..channels) = sum g and sums[channels..) = sum g (x - centre) over the pixels [begin, end)
template <bool Silu, class T>
void add_up(const Args& a, int64_t set, int64_t begin, int64_t end, const Layer& layer, double* sums) {
    const int64_t channels = a.of.channels, row = (channels + 15) / 16 * 16;
    float *sum = scratch.reserve(2 * row), *product = sum + row;
    for (int64_t c = 0; c < 2 * channels; ++c) sums[c] = 0;
    for (int64_t stop; begin < end; begin = stop) {
        stop = least(begin + kSummed, end);
        for (int64_t c = 0; c < 2 * row; ++c) sum[c] = 0;
        over_runs<T>(a, set, begin, stop, [&](const T* x, const T* grad, int64_t run) {
            for (; run >= 4; run -= 4, x += 4 * a.of.stride[1], grad += 4 * a.grad_stride[1])
                add_up<Silu, T, 4>(a, x, grad, layer, sum, product);
            for (; run > 0; --run, x += a.of.stride[1], grad += a.grad_stride[1])
                add_up<Silu, T, 1>(a, x, grad, layer, sum, product);
        });
        for (int64_t c = 0; c < channels; ++c) sums[c] += sum[c], sums[channels + c] += product[c];
    }
}

template <bool Silu, class T, int N>
inline __attribute__((always_inline)) void finish(const Args& a, const T* x, const T* grad, T* out,
                                                  const Layer& layer) {
    const float *centre = layer.centre, *scale = layer.scale, *offset = layer.offset, *slope = layer.slope,
                *shift = layer.shift;
    const int64_t stride = a.of.stride[1], grad_stride = a.grad_stride[1], channels = a.of.channels;
    along_row<false>(channels, [=](auto lanes) {
        const vfloat middle = lanes.load(centre), factor = lanes.load(scale), start = lanes.load(offset);
        const vfloat tilt = lanes.load(slope), step = lanes.load(shift);
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) {
            const vfloat d = lanes.load(x + i * stride) - middle;
            const vfloat g =
                through_silu<Silu, sizeof(T) == 4>(lanes.load(grad + i * grad_stride), d * factor + start);
            lanes.output(out + i * channels, factor * g - tilt * d - step);
        }
    });
}

template <bool Silu, class T>
void finish(const Args& a, int64_t set, int64_t begin, int64_t end, const Layer& layer) {
    T* out = static_cast<T*>(a.of.out) + (set * a.of.frames * a.of.pixels + begin) * a.of.channels;
    over_runs<T>(a, set, begin, end, [&](const T* x, const T* grad, int64_t run) {
        for (; run >= 4; run -= 4, out += 4 * a.of.channels) {
            finish<Silu, T, 4>(a, x, grad, out, layer);
            x += 4 * a.of.stride[1], grad += 4 * a.grad_stride[1];
        }
        for (; run > 0; --run, out += a.of.channels) {
            finish<Silu, T, 1>(a, x, grad, out, layer);
            x += a.of.stride[1], grad += a.grad_stride[1];
        }
    });
}

// How the group's mean and variance enter the channel's row of the layer.
void prepare(const Args& a, const Moments* moments, const Layer& layer) {
    const int64_t width = a.of.channels / a.of.groups;
    for (int64_t c = 0; c < a.of.channels; ++c) {
        const Moments& m = moments[c / width];
        const double scale = a.of.weight[c] / __builtin_sqrt(m.m2 / m.count + a.of.eps);
        layer.centre[c] = float(m.mean);
        layer.scale[c] = float(scale);
        layer.offset[c] = float(a.of.bias[c] + (layer.centre[c] - m.mean) * scale);
    }
}

// sums: as add_up leaves them; becomes dbias, dweight.
void prepare(const Args& a, const Moments* moments, double* sums, const Layer& layer) {
    const int64_t channels = a.of.channels, width = channels / a.of.groups;
    for (int64_t g = 0; g < a.of.groups; ++g) {
        const Moments& m = moments[g];
        const double inverse = 1 / __builtin_sqrt(m.m2 / m.count + a.of.eps);
        double plain = 0, product = 0;
        for (int64_t c = g * width; c < (g + 1) * width; ++c) {
            sums[channels + c] += (layer.centre[c] - m.mean) * sums[c];
            plain += a.of.weight[c] * sums[c];
            product += a.of.weight[c] * sums[channels + c];
            sums[channels + c] *= inverse;
        }
        const double slope = inverse * inverse * inverse * product / m.count;
        for (int64_t c = g * width; c < (g + 1) * width; ++c) {
            layer.slope[c] = float(slope);
            layer.shift[c] = float(inverse * plain / m.count + (layer.centre[c] - m.mean) * slope);
        }
    }
}

// One set, shared by `threads` threads.
template <bool Silu, class T>
void run(const Args& a, int64_t set, int threads) {
    const int64_t channels = a.of.channels, groups = a.of.groups, row = (channels + 15) / 16 * 16;
    const int64_t pixels = a.of.frames * a.of.pixels;
    const int64_t pieces = threads == 1 ? 1 : least(4 * threads, (pixels + 63) / 64);
    const int64_t bytes =
        pieces * (2 * channels * sizeof(double) + groups * sizeof(Moments)) + 5 * row * sizeof(float);
    void* const memory = malloc(bytes);
    if (!memory) abort();
    double* const sums = static_cast<double*>(memory);
    auto* const moments = reinterpret_cast<Moments*>(sums + pieces * 2 * channels);
    const Layer layer(reinterpret_cast<float*>(moments + pieces * groups), row);
    const auto begin = [=](int64_t piece) { return pixels * piece / pieces; };

    parallel_for(threads, pieces, [&](int64_t i) {
        float* rows = scratch.reserve(3 * row);
        measure<T>(a.of, set, begin(i), begin(i + 1), Sums{rows, rows + row, rows + 2 * row},
                   moments + i * groups);
    });
    for (int64_t i = groups; i < pieces * groups; ++i)
        moments[i % groups].join(moments[i].count, moments[i].mean, moments[i].m2);
    prepare(a, moments, layer);
    parallel_for(threads, pieces, [&](int64_t i) {
        add_up<Silu, T>(a, set, begin(i), begin(i + 1), layer, sums + i * 2 * channels);
    });
    for (int64_t i = 2 * channels; i < pieces * 2 * channels; ++i) sums[i % (2 * channels)] += sums[i];
    prepare(a, moments, sums, layer);
    __builtin_memcpy(a.sums + set * 2 * channels, sums, 2 * channels * sizeof(double));
    parallel_for(threads, pieces, [&](int64_t i) {  // backwards: what was read last is still in the cache
        const int64_t piece = pieces - 1 - i;
        finish<Silu, T>(a, set, begin(piece), begin(piece + 1), layer);
    });
    free(memory);
}

template <bool Silu, class T>
void run(const Args& a) {
    const int64_t sets = a.of.images / a.of.frames;
    const int64_t useful = a.of.images * a.of.pixels * a.of.channels >> 15;  // as forward
    const int threads = int(least(a.of.threads, most(1, useful)));
    if (sets >= 2 * threads)
        return parallel_for(threads, sets, [&](int64_t set) { run<Silu, T>(a, set, 1); });
    for (int64_t set = 0; set < sets; ++set) run<Silu, T>(a, set, threads);
}

template <class T>
void run(const Args& a) {
    a.of.silu ? run<true, T>(a) : run<false, T>(a);
}

}  // namespace

void group_norm_silu_backward(const GroupNormSiluBackwardArgs& a) {
    switch (a.of.dtype) {
        case DType::f32:
            return run<float>(a);
        case DType::bf16:
            return run<bf16>(a);
        case DType::f16:
            return run<f16>(a);
    }
}

}  // namespace vidsmooth::VIDSMOOTH_ISA
