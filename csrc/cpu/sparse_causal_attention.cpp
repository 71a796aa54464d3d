// Attention of each frame's tokens to the tokens of a few frames.
//
// A unit is one batch entry, head and query frame. Its queries are transposed once into blocks of one vector
// (lanes are queries); its keys and values pass by in blocks of 256, copied to dense fp32 rows that stay in
// the L2 cache, with a running maximum and sum per query. So every product is a vector of queries times one
// broadcast number, and heads of any width use whole vectors: what PyTorch's fused attention loses on narrow
// heads, where the exponentials and the many small matrix products weigh most.
#include "cpu/attention_tiles.h"
#include "cpu/kernels.h"
#include "cpu/numbers.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace vidsmooth::VIDSMOOTH_ISA {
namespace {

using Args = SparseCausalAttentionArgs;

constexpr int64_t kKeys = 256;
constexpr int W = kWidth;

thread_local Scratch scratch;

// out[c][0..W) <- shrink * out[c][0..W) + sum_j v[j][c] p[j][0..W) for N columns c
template <int N>
ALWAYS_INLINE void value_columns(const float* p, const float* v, int64_t stride, int64_t keys, vfloat shrink,
                                 float* out) {
    vfloat sum[N] = {};
    for (int64_t j = 0; j < keys; ++j) {
        const vfloat x = load(p + j * W);
#pragma GCC unroll 8
        for (int c = 0; c < N; ++c) sum[c] += x * v[j * stride + c];
    }
#pragma GCC unroll 8
    for (int c = 0; c < N; ++c) store(out + c * W, load(out + c * W) * shrink + sum[c]);
}

// What a block of queries keeps while the keys pass by: q and the result with lanes across the W queries, the
// largest score so far, and the sum of the exponentials below it.
struct Block {
    float *q, *out, *top, *sum;

    Block(float* memory, int64_t index, int64_t width) {
        q = memory + index * floats(width);
        out = q + (width + 3) * W;
        top = out + width * W;
        sum = top + W;
    }
    static int64_t floats(int64_t width) { return (2 * width + 5) * W; }

    void start(const float* rows, int64_t width) {
        transpose<W>(rows, width, width, q);
        for (int64_t c = 0; c < width; ++c) store(out + c * W, vfloat{});
        store(top, splat(-__builtin_inff()));
        store(sum, vfloat{});
    }

    // scores: room for kKeys vectors
    ALWAYS_INLINE void attend(const float* k, const float* v, int64_t keys, int64_t width, float scale,
                              float bias, float* scores) {
        for (int64_t j = 0; j < keys; j += 8)
            score_tile<W>(int(least(8, keys - j)), q, k + j * width, width, width, scores + j * W);
        const vfloat before = load(top);
        vfloat highest = before;
        for (int64_t j = 0; j < keys; ++j) {
            const vfloat x = load(scores + j * W) * scale + bias;
            highest = x > highest ? x : highest;
            store(scores + j * W, x);
        }
        vfloat total = {};
        for (int64_t j = 0; j < keys; ++j) {
            const vfloat x = exp_negative<W>(load(scores + j * W) - highest);
            total += x;
            store(scores + j * W, x);
        }
        const vfloat shrink = exp_negative<W>(before - highest);
        store(top, highest);
        store(sum, load(sum) * shrink + total);
        int64_t c = 0;
        for (; c + 8 <= width; c += 8) value_columns<8>(scores, v + c, width, keys, shrink, out + c * W);
        for (; c + 4 <= width; c += 4) value_columns<4>(scores, v + c, width, keys, shrink, out + c * W);
        for (; c < width; ++c) value_columns<1>(scores, v + c, width, keys, shrink, out + c * W);
    }

    // rows: W of them, dense
    void finish(int64_t width, float* rows) const {
        const vfloat inverse = 1.f / load(sum);
        for (int64_t c = 0; c < width; ++c) {
            const vfloat x = load(out + c * W) * inverse;
            for (int i = 0; i < W; ++i) rows[i * width + c] = x[i];
        }
    }
};

template <class T>
class Frames {  // rows of one head in q, k or v
  public:
    Frames(const Args& a, int tensor, int64_t batch, int64_t head)
        : data_(static_cast<const T*>(a.in[tensor]) + batch * a.frames * a.stride[tensor][0] +
                head * a.width),
          frame_(a.stride[tensor][0]),
          pixel_(a.stride[tensor][1]),
          width_(a.width) {}

    void widen(int64_t frame, int64_t begin, int64_t end, float* to) const {
        const T* from = data_ + frame * frame_ + begin * pixel_;
        for (int64_t p = begin; p < end; ++p, from += pixel_, to += width_) widen_row(from, width_, to);
    }

  private:
    const T* data_;
    int64_t frame_, pixel_, width_;
};

template <class T>
void run_unit(const Args& a, int64_t unit) {
    const int64_t frame = unit % a.frames, head = unit / a.frames % a.heads;
    const int64_t batch = unit / a.frames / a.heads, d = a.width, blocks = parts(a.pixels, W);
    const Frames<T> queries(a, 0, batch, head), keys(a, 1, batch, head), values(a, 2, batch, head);

    float* memory = scratch.reserve(blocks * Block::floats(d) + (2 * kKeys + W) * d + 3 * W + kKeys * W);
    float* k = memory + blocks * Block::floats(d);
    float *v = k + kKeys * d + W, *rows = v + kKeys * d + W, *scores = rows + W * d + W;

    for (int64_t i = 0; i < blocks;
         ++i) {  // rows past the last query hold an older block: computed, not stored
        queries.widen(frame, i * W, least(a.pixels, (i + 1) * W), rows);
        Block(memory, i, d).start(rows, d);
    }
    for (int64_t n = a.first[frame]; n < a.first[frame + 1]; ++n) {
        for (int64_t begin = 0; begin < a.pixels; begin += kKeys) {
            const int64_t end = least(a.pixels, begin + kKeys);
            keys.widen(a.key[n], begin, end, k);
            values.widen(a.key[n], begin, end, v);
            for (int64_t i = 0; i < blocks; ++i)
                Block(memory, i, d).attend(k, v, end - begin, d, a.scale, a.bias[n], scores);
        }
    }
    T* out = static_cast<T*>(a.out) + ((batch * a.frames + frame) * a.pixels * a.heads + head) * d;
    for (int64_t i = 0; i < blocks; ++i) {
        Block(memory, i, d).finish(d, rows);
        for (int64_t p = i * W; p < least(a.pixels, (i + 1) * W); ++p)
            narrow_row(rows + (p - i * W) * d, d, out + p * a.heads * d);
    }
}

template <class T>
void run(const Args& a) {
    parallel_for(a.threads, a.batch * a.heads * a.frames, [&](int64_t unit) { run_unit<T>(a, unit); });
}

}  // namespace

void sparse_causal_attention(const SparseCausalAttentionArgs& a) {
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
