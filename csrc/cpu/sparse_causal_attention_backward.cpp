// Gradients of sparse_causal_attention. With scores s = scale q k^T + bias, p = softmax(s), and g the
// gradient of the result:
//
//     dv = p^T g,    dp = g v^T,    ds = scale p (dp - sum_j p dp),    dq = ds k,    dk = ds^T q
//
// A unit is one batch entry, head and query frame, as forward. A vector of its queries meets all keys of the
// frame at once, so that p and ds exist for W queries at a time and nothing of the forward pass is needed. A
// key frame is read by several query frames: each of them writes its own part of dk and dv, and a second pass
// adds the parts up, in one order whatever the number of threads.
#include "cpu/attention_tiles.h"
#include "cpu/kernels.h"
#include "cpu/numbers.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace vidsmooth::VIDSMOOTH_ISA {
namespace {

using Args = SparseCausalAttentionBackwardArgs;

constexpr int W = kWidth;
constexpr int kRows = kWidth == 16 ? 8 : 4;  // keys whose gradients are in registers at a time
constexpr int64_t kKeys = 256;               // summed in fp32 registers
constexpr int64_t kRun = 4096;               // floats of the parts that are added up in the L1 cache

thread_local Scratch scratch;

template <class T>
const T* row(const void* data, const int64_t (&stride)[2], int64_t frame, int64_t pixel, int64_t column) {
    return static_cast<const T*>(data) + frame * stride[0] + pixel * stride[1] + column;
}

// out[c][0..W) += sum_j k[j][c] ds[j][0..W) for N columns c
template <int N>
ALWAYS_INLINE void add_columns(const float* ds, const float* k, int64_t stride, int64_t keys, float* out) {
    vfloat sum[N] = {};
    for (int64_t j = 0; j < keys; ++j) {
        const vfloat x = load(ds + j * W);
#pragma GCC unroll 8
        for (int c = 0; c < N; ++c) sum[c] += x * k[j * stride + c];
    }
#pragma GCC unroll 8
    for (int c = 0; c < N; ++c) store(out + c * W, load(out + c * W) + sum[c]);
}

// out[j][0..M*W) += sum_i p[j][i] rows[i][0..M*W) for kRows keys j and W queries i
template <int M>
ALWAYS_INLINE void add_rows(const float* p, const float* rows, int64_t stride, float* out) {
    vfloat sum[kRows][M];
#pragma GCC unroll 8
    for (int j = 0; j < kRows; ++j)
        for (int m = 0; m < M; ++m) sum[j][m] = load(out + j * stride + m * W);
    for (int i = 0; i < W; ++i) {
        vfloat x[M];
        for (int m = 0; m < M; ++m) x[m] = load(rows + i * stride + m * W);
#pragma GCC unroll 8
        for (int j = 0; j < kRows; ++j)
            for (int m = 0; m < M; ++m) sum[j][m] += x[m] * p[j * W + i];
    }
#pragma GCC unroll 8
    for (int j = 0; j < kRows; ++j)
        for (int m = 0; m < M; ++m) store(out + j * stride + m * W, sum[j][m]);
}

// out[j] += sum_i p[j][i] rows[i] for all keys j, a multiple of kRows; stride: of rows and out, a multiple of
// W
void add_rows(const float* p, const float* rows, int64_t stride, int64_t keys, float* out) {
    for (int64_t j = 0; j < keys; j += kRows) {
        int64_t c = 0;
        for (; c + 2 * W <= stride; c += 2 * W)
            add_rows<2>(p + j * W, rows + c, stride, out + j * stride + c);
        if (c < stride) add_rows<1>(p + j * W, rows + c, stride, out + j * stride + c);
    }
}

// What a unit holds: q and g of W queries, as rows and with lanes across the queries; k, v, dk and dv of all
// keys; p and dp, then ds, with lanes across the queries.
struct Unit {
    int64_t keys, padded, stride;
    float *q, *g, *qt, *gt, *dq, *k, *v, *dk, *dv, *p, *dp;

    Unit(int64_t count, int64_t width) : keys(count) {
        padded = parts(keys, 8) * 8;
        stride = parts(width, W) * W;
        const int64_t rows = padded * stride, columns = (width + 3) * W;
        float* at = scratch.reserve((2 * W * stride + 3 * columns) + 4 * rows + 2 * padded * W);
        const auto take = [&](int64_t floats) { return (at += floats) - floats; };
        q = take(W * stride), g = take(W * stride), qt = take(columns), gt = take(columns),
        dq = take(columns);
        k = take(rows), v = take(rows), dk = take(rows), dv = take(rows);
        p = take(padded * W), dp = take(padded * W);
    }

    // From scores to probabilities, and from dp to ds. bias: of each `pixels` keys.
    void differentiate(const float* bias, int64_t pixels, float scale) const {
        vfloat top = splat(-__builtin_inff()), sum = {}, dot = {};
        for (int64_t begin = 0; begin < keys; begin += pixels, ++bias) {
            for (int64_t j = begin; j < begin + pixels; ++j) {
                const vfloat x = load(p + j * W) * scale + *bias;
                top = x > top ? x : top;
                store(p + j * W, x);
            }
        }
        for (int64_t j = 0; j < keys; ++j) {
            const vfloat x = exp_negative<W>(load(p + j * W) - top);
            sum += x;
            dot += x * load(dp + j * W);
            store(p + j * W, x);
        }
        const vfloat inverse = 1.f / sum, mean = dot * inverse;
        for (int64_t j = 0; j < keys; ++j) {
            const vfloat x = load(p + j * W) * inverse;
            store(p + j * W, x);
            store(dp + j * W, x * (load(dp + j * W) - mean) * scale);
        }
    }
};

template <class T>
void run_unit(const Args& a, int64_t index) {
    const auto& of = a.of;
    const int64_t frame = index % of.frames, head = index / of.frames % of.heads;
    const int64_t batch = index / of.frames / of.heads, d = of.width, column = head * d, all = of.heads * d;
    const int64_t first = of.first[frame], reads = of.first[frame + 1] - first, image = batch * of.frames;
    const Unit u(reads * of.pixels, d);
    const int64_t rows = u.padded * u.stride;

    __builtin_memset(u.k, 0, 4 * rows * sizeof(float));  // k, v, dk, dv
    for (int64_t n = 0; n < reads; ++n) {
        for (int64_t p = 0; p < of.pixels; ++p) {
            const int64_t to = (n * of.pixels + p) * u.stride, key = image + of.key[first + n];
            widen_row(row<T>(of.in[1], of.stride[1], key, p, column), d, u.k + to);
            widen_row(row<T>(of.in[2], of.stride[2], key, p, column), d, u.v + to);
        }
    }
    for (int64_t begin = 0; begin < of.pixels; begin += W) {
        const int64_t count = least(W, of.pixels - begin);
        __builtin_memset(u.q, 0, 2 * W * u.stride * sizeof(float));  // q, g: nothing comes of absent queries
        for (int64_t i = 0; i < count; ++i) {
            widen_row(row<T>(of.in[0], of.stride[0], image + frame, begin + i, column), d,
                      u.q + i * u.stride);
            widen_row(row<T>(a.grad, a.grad_stride, image + frame, begin + i, column), d, u.g + i * u.stride);
        }
        transpose<W>(u.q, u.stride, d, u.qt);
        transpose<W>(u.g, u.stride, d, u.gt);
        for (int64_t j = 0; j < u.keys; j += 8) {
            score_tile<W, 8>(u.qt, u.k + j * u.stride, u.stride, d, u.p + j * W);
            score_tile<W, 8>(u.gt, u.v + j * u.stride, u.stride, d, u.dp + j * W);
        }
        u.differentiate(of.bias + first, of.pixels, of.scale);
        if (a.parts) {
            add_rows(u.dp, u.q, u.stride, u.padded, u.dk);
            add_rows(u.p, u.g, u.stride, u.padded, u.dv);
        }
        __builtin_memset(u.dq, 0, d * W * sizeof(float));
        for (int64_t j = 0; j < u.keys; j += kKeys) {
            const float *ds = u.dp + j * W, *k = u.k + j * u.stride;
            const int64_t keys = least(kKeys, u.keys - j);
            int64_t c = 0;
            for (; c + 8 <= d; c += 8) add_columns<8>(ds, k + c, u.stride, keys, u.dq + c * W);
            for (; c < d; ++c) add_columns<1>(ds, k + c, u.stride, keys, u.dq + c * W);
        }
        T* out = static_cast<T*>(of.out) + ((image + frame) * of.pixels + begin) * all + column;
        for (int64_t i = 0; i < count; ++i) {
            for (int64_t c = 0; c < d; ++c) u.q[i * u.stride + c] = u.dq[c * W + i];
            narrow_row(u.q + i * u.stride, d, out + i * all);
        }
    }
    for (int64_t which = 0; a.parts && which < 2; ++which) {
        const int64_t total = of.first[of.frames];
        float* part = a.parts + ((which * of.batch + batch) * total + first) * of.pixels * all + column;
        const float* from = which ? u.dv : u.dk;
        for (int64_t j = 0; j < u.keys; ++j, part += all) narrow_row(from + j * u.stride, d, part);
    }
}

// unit: batch entry and key frame
template <class T>
void collect(const Args& a, int64_t unit) {
    const auto& of = a.of;
    const int64_t frame = unit % of.frames, batch = unit / of.frames, total = of.first[of.frames];
    const int64_t size = of.pixels * of.heads * of.width;
    float* sum = scratch.reserve(kRun + W);
    for (int64_t which = 0; which < 2; ++which) {
        const float* parts = a.parts + (which * of.batch + batch) * total * size;
        T* out = static_cast<T*>(which ? a.to_v : a.to_k) + unit * size;
        for (int64_t begin = 0; begin < size; begin += kRun) {
            const int64_t count = least(kRun, size - begin);
            __builtin_memset(sum, 0, count * sizeof(float));
            for (int64_t n = 0; n < total; ++n) {
                if (of.key[n] != frame) continue;
                const float* part = parts + n * size + begin;
                along_row<false>(count,
                                 [=](auto lanes) { lanes.store(sum, lanes.load(sum) + lanes.load(part)); });
            }
            narrow_row(sum, count, out + begin);
        }
    }
}

template <class T>
void run(const Args& a) {
    const auto& of = a.of;
    parallel_for(of.threads, of.batch * of.heads * of.frames, [&](int64_t unit) { run_unit<T>(a, unit); });
    if (a.parts) parallel_for(of.threads, of.batch * of.frames, [&](int64_t unit) { collect<T>(a, unit); });
}

}  // namespace

void sparse_causal_attention_backward(const SparseCausalAttentionBackwardArgs& a) {
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
