// Attention of each frame's tokens to the tokens of a few frames.
//
// A unit is one batch entry, head and query frame. Its queries are transposed once into blocks of one vector
// (lanes are queries); its keys and values pass by in blocks of 128, copied to dense rows that stay in the L1
// cache, with a running maximum and sum per query. So every product is a vector of queries times one
// broadcast number, and heads of any width use whole vectors: what PyTorch's fused attention loses on narrow
// heads, where the exponentials and the many small matrix products weigh most. Where registers suffice two
// blocks of queries share each broadcast.
//
// Everything is a row of 32-bit words: floats, or, for bf16 on processors that multiply it, pairs of
// neighbouring columns (q, k) or neighbouring keys (v, exponentials), which halves the products.
#include "cpu/attention_tiles.h"
#include "cpu/kernels.h"
#include "cpu/numbers.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/words.h"

namespace vidsmooth::VIDSMOOTH_ISA {
namespace {

using Args = SparseCausalAttentionArgs;

constexpr int64_t kKeys = 128;
constexpr int W = kWidth;
constexpr int kTogether = kWidth == 16 ? 2 : 1;  // blocks of queries: 16 sums in the 32 registers of AVX-512

thread_local Scratch scratch;

// 2^x for x <= 0 within 2 units in the last place down to 2^-126, where it stays.
ALWAYS_INLINE vfloat exp2_negative(vfloat x) {
    const vfloat lowest = splat(-126.f),
                 shift = splat(12582912.f);  // 1.5 * 2^23: a sum with it is an integer
    x = x < lowest ? lowest : x;
    vfloat n = x + shift;
    const vuint exponent = (vuint)n << 23;
    n -= shift;
    const vfloat r = x - n;
    vfloat y = r * 0.00132647273f + 0.00967151299f;
    y = y * r + 0.0555073358f;
    y = y * r + 0.240222424f;
    y = y * r + 0.693147004f;
    y = y * r + 1.f;
    return (vfloat)((vuint)y + exponent);
}

// scores[j][m] = sum_c k[j][c] q[m][c] for N keys and M vectors of queries; top[m]: the largest. Summed in
// blocks of 32 words, which keeps the rounding error of wide heads near that of PyTorch's blocked products.
template <class Word, int M, int N>
ALWAYS_INLINE void score_words(const float* const* q, const float* k, int64_t words, float* scores,
                               vfloat* top) {
    for (int64_t begin = 0; begin < words; begin += 32) {
        const int64_t end = begin + 32 < words ? begin + 32 : words;
        vfloat sum[N][M] = {};
        for (int64_t c = begin; c < end; ++c) {
            vfloat x[M];
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) x[m] = load(q[m] + c * W);
#pragma GCC unroll 8
            for (int j = 0; j < N; ++j)
#pragma GCC unroll 8
                for (int m = 0; m < M; ++m) sum[j][m] = Word::add(sum[j][m], x[m], k[j * words + c]);
        }
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j)
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                if (begin) sum[j][m] += load(scores + (j * M + m) * W);
                store(scores + (j * M + m) * W, sum[j][m]);
                if (end == words) top[m] = sum[j][m] > top[m] ? sum[j][m] : top[m];
            }
    }
}

// out[m][c] <- shrink[m] * out[m][c] + sum_j v[j][c] p[j][m] for N columns c
template <class Word, int M, int N>
ALWAYS_INLINE void value_columns(const float* p, const float* v, int64_t stride, int64_t words,
                                 const vfloat* shrink, float* const* out, int64_t column) {
    vfloat sum[N][M] = {};
    v += column;
    for (int64_t j = 0; j < words; ++j) {
        vfloat x[M];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) x[m] = load(p + (j * M + m) * W);
#pragma GCC unroll 8
        for (int c = 0; c < N; ++c)
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) sum[c][m] = Word::add(sum[c][m], x[m], v[j * stride + c]);
    }
#pragma GCC unroll 8
    for (int c = 0; c < N; ++c)
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            float* to = out[m] + (column + c) * W;
            store(to, load(to) * shrink[m] + sum[c][m]);
        }
}

// What a block of queries keeps while the keys pass by: q and the result with lanes across the W queries, the
// largest score so far in powers of 2, and the sum of the exponentials below it.
struct Block {
    float *q, *out, *top, *sum;

    Block(float* memory, int64_t index, int64_t width) {
        q = memory + index * floats(width);
        out = q + (width + 3) * W;
        top = out + width * W;
        sum = top + W;
    }
    static int64_t floats(int64_t width) { return (2 * width + 5) * W; }

    // rows: W of `words` words, dense. signs: those to turn around
    void start(const float* rows, int64_t words, int64_t width, uint32_t signs) {
        transpose<W>(rows, words, words, q);
        for (int64_t c = 0; signs && c < words; ++c)
            store(q + c * W, (vfloat)((vuint)load(q + c * W) ^ signs));
        for (int64_t c = 0; c < width; ++c) store(out + c * W, vfloat{});
        store(top, splat(-__builtin_inff()));
        store(sum, vfloat{});
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

// M blocks of queries meet `keys` keys. k: rows of `words` words. v: a row for every Word::kPer keys. scale
// and bias are those of powers of 2; scores: room for M * kKeys vectors.
template <class Word, int M>
ALWAYS_INLINE void attend(const Block* blocks, const float* k, const float* v, int64_t keys, int64_t words,
                          int64_t width, float scale, float bias, float* scores) {
    const float* q[M];
    float* out[M];
    vfloat top[M], shrink[M], below[M], total[M] = {};
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        q[m] = blocks[m].q, out[m] = blocks[m].out;
        top[m] = splat(-__builtin_inff());
    }
    int64_t j = 0;
    for (; j + 8 <= keys; j += 8) score_words<Word, M, 8>(q, k + j * words, words, scores + j * M * W, top);
    for (; j + 4 <= keys; j += 4) score_words<Word, M, 4>(q, k + j * words, words, scores + j * M * W, top);
    for (; j < keys; ++j) score_words<Word, M, 1>(q, k + j * words, words, scores + j * M * W, top);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        const vfloat before = load(blocks[m].top), here = top[m] * scale + bias;
        const vfloat highest = before > here ? before : here;
        shrink[m] = exp2_negative(before - highest);
        store(blocks[m].top, highest);
        below[m] = bias - highest;
    }
    const int64_t rows = parts(keys, Word::kPer);
    for (j = keys * M; j < rows * Word::kPer * M; ++j) store(scores + j * W, splat(-__builtin_inff()));
    for (j = 0; j < rows; ++j) {
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            vfloat x[Word::kPer];
#pragma GCC unroll 2
            for (int i = 0; i < Word::kPer; ++i) {
                x[i] = exp2_negative(load(scores + ((j * Word::kPer + i) * M + m) * W) * scale + below[m]);
                total[m] += x[i];
            }
            store(scores + (j * M + m) * W, Word::join(x));
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) store(blocks[m].sum, load(blocks[m].sum) * shrink[m] + total[m]);
    int64_t c = 0;
    for (; c + 8 <= width; c += 8) value_columns<Word, M, 8>(scores, v, width, rows, shrink, out, c);
    for (; c + 4 <= width; c += 4) value_columns<Word, M, 4>(scores, v, width, rows, shrink, out, c);
    for (; c < width; ++c) value_columns<Word, M, 1>(scores, v, width, rows, shrink, out, c);
}

template <class T>
class Frames {  // rows of one head in q, k or v
  public:
    Frames(const Args& a, int tensor, int64_t batch, int64_t head)
        : data_(static_cast<const T*>(a.in[tensor]) +
                batch * (tensor ? a.key_frames : a.frames) * a.stride[tensor][0] + head * a.width),
          frame_(a.stride[tensor][0]),
          pixel_(a.stride[tensor][1]),
          width_(a.width) {}

    void words(Single, int64_t frame, int64_t begin, int64_t end, float* to) const {
        const T* from = data_ + frame * frame_ + begin * pixel_;
        for (int64_t p = begin; p < end; ++p, from += pixel_, to += width_) widen_row(from, width_, to);
    }
    void values(Single, int64_t frame, int64_t begin, int64_t end, float* to) const {
        words(Single{}, frame, begin, end, to);
    }
#if defined(__AVX512BF16__)
    // an odd last column is paired with zero
    void words(Pair, int64_t frame, int64_t begin, int64_t end, float* to) const {
        const T* from = data_ + frame * frame_ + begin * pixel_;
        for (int64_t p = begin; p < end; ++p, from += pixel_, to += parts(width_, 2)) {
            if (width_ % 2) to[width_ / 2] = 0.f;
            __builtin_memcpy(to, from, width_ * sizeof(T));
        }
    }
    void values(Pair, int64_t frame, int64_t begin, int64_t end, float* to) const {
        const T* from = data_ + frame * frame_ + begin * pixel_;
        uint32_t* pairs = reinterpret_cast<uint32_t*>(to);
        for (int64_t p = begin; p < end; p += 2, from += 2 * pixel_, pairs += width_) {
            for (int64_t c = 0; c < width_; ++c) {
                const uint32_t next = p + 1 < end ? from[pixel_ + c].bits : 0;
                pairs[c] = from[c].bits | next << 16;
            }
        }
    }
#endif

  private:
    const T* data_;
    int64_t frame_, pixel_, width_;
};

template <class T, class Word>
void run_unit(const Args& a, int64_t unit) {
    const int64_t frame = unit % a.frames, head = unit / a.frames % a.heads;
    const int64_t batch = unit / a.frames / a.heads, d = a.width, blocks = parts(a.pixels, W);
    const int64_t words = parts(d, Word::kPer);
    const Frames<T> queries(a, 0, batch, head), keys(a, 1, batch, head), values(a, 2, batch, head);
    constexpr float kLog2e = 1.44269504f;
    const float scale = (a.scale < 0 ? -a.scale : a.scale) * kLog2e;

    float* memory = scratch.reserve(blocks * Block::floats(d) + (2 * kKeys + W) * d + 3 * W +
                                    (kKeys + 1) * kTogether * W);
    float* k = memory + blocks * Block::floats(d);
    float *v = k + kKeys * d + W, *rows = v + kKeys * d + W, *scores = rows + W * d + W;

    for (int64_t i = 0; i < blocks;
         ++i) {  // rows past the last query hold an older block: computed, not stored
        queries.words(Word{}, frame, i * W, least(a.pixels, (i + 1) * W), rows);
        Block(memory, i, d).start(rows, words, d, a.scale < 0 ? Word::kSigns : 0);
    }
    for (int64_t n = a.first[frame]; n < a.first[frame + 1]; ++n) {
        const float bias = a.bias[n] * kLog2e;
        for (int64_t begin = 0; begin < a.key_pixels; begin += kKeys) {
            const int64_t end = least(a.key_pixels, begin + kKeys);
            keys.words(Word{}, a.key[n], begin, end, k);
            values.values(Word{}, a.key[n], begin, end, v);
            int64_t i = 0;
            for (; i + kTogether <= blocks; i += kTogether) {
                const Block these[2] = {Block(memory, i, d), Block(memory, i + kTogether - 1, d)};
                attend<Word, kTogether>(these, k, v, end - begin, words, d, scale, bias, scores);
            }
            for (; i < blocks; ++i) {
                const Block block(memory, i, d);
                attend<Word, 1>(&block, k, v, end - begin, words, d, scale, bias, scores);
            }
        }
    }
    T* out = static_cast<T*>(a.out) + ((batch * a.frames + frame) * a.pixels * a.heads + head) * d;
    for (int64_t i = 0; i < blocks; ++i) {
        Block(memory, i, d).finish(d, rows);
        for (int64_t p = i * W; p < least(a.pixels, (i + 1) * W); ++p)
            narrow_row(rows + (p - i * W) * d, d, out + p * a.heads * d);
    }
}

template <class T, class Word = Single>
void run(const Args& a) {
    parallel_for(a.threads, a.batch * a.heads * a.frames, [&](int64_t unit) { run_unit<T, Word>(a, unit); });
}

}  // namespace

void sparse_causal_attention(const SparseCausalAttentionArgs& a) {
    switch (a.dtype) {
        case DType::f32:
            return run<float>(a);
        case DType::bf16:
#if defined(__AVX512BF16__)
            return run<bf16, Pair>(a);
#else
            return run<bf16>(a);
#endif
        case DType::f16:
            return run<f16>(a);
    }
}

}  // namespace vidsmooth::VIDSMOOTH_ISA
