// The feed-forward of transformers: (h * gelu(g)) W_out^T + b_out with (h, g) = x W_in^T + b_in.
//
// A thread takes a few rows through both layers: what is between them stays in its L2 cache. Weights are put
// in order at every call: those of the first layer in panels of some channels of h and the same ones of g, so
// that one product in the registers has what it takes to close the gate.
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/product.h"
#include "cpu/scratch.h"

namespace vidsmooth::VIDSMOOTH_ISA {
namespace {

using Args = FeedForwardArgs;

constexpr int64_t kMostRows = 48;       // that a thread takes at once
constexpr int64_t kHidden = 128 << 10;  // words of hidden rows, at most about: 512 KB

thread_local Scratch scratch, weights_scratch;

// x Phi(x), Phi to 1.1e-7: 1/2 + z q(z^2), q a polynomial of degree 14, z: x within +-5.25. Below it is 0,
// which is right to 4e-7.
ALWAYS_INLINE vfloat gelu(vfloat x) {
    constexpr float kBound = 5.25f;
    constexpr float q[] = {0.13465935f,     -0.067126818f,    0.0496457852f,  -0.0397634134f,
                           0.0320314392f,   -0.0250419322f,   0.0185386445f,  -0.0127752535f,
                           0.00841788389f,  -0.0054485132f,   0.00289234123f, -0.00103954028f,
                           0.000664747728f, -0.000656581949f, 0.000239945439f};
    vfloat z = x > kBound ? splat(kBound) : x;
    z = z < -kBound ? splat(-kBound) : z;
    const vfloat u = z * z * (2 / (kBound * kBound)) - 1.f;
    vfloat sum = splat(q[14]);
#pragma GCC unroll 14
    for (int i = 13; i >= 0; --i) sum = sum * u + q[i];
    return x < -kBound ? vfloat{} : x * (z * sum + 0.5f);
}

// Rows of x times panels, one after the other, that hold `per` weights of each channel:
// use(row, channel, sums, vectors). spare: kRows * words floats.
template <class Words, class Use>
ALWAYS_INLINE void through_panels(const float* x, int64_t rows, int64_t words, const float* panel,
                                  int64_t channels, const Panels& panels, int per, float* spare,
                                  const Use& use) {
    const int64_t whole = rows / kRows * kRows;
    if (whole < rows) __builtin_memcpy(spare, x + whole * words, (rows - whole) * words * sizeof(float));
    for (int64_t channel = 0; channel < channels; channel += panels.width) {
        const int64_t width = per * (panels.end(channel, channels) - channel);
        for (int64_t row = 0; row < rows; row += kRows) {
            const float* from = row < whole ? x + row * words : spare;
            product<Words>(width / kWidth, from, words, panel, words, [&](int i, const vfloat* sums, int n) {
                if (row + i < rows) use(row + i, channel, sums, n);
            });
        }
        panel += words * width;
    }
}

template <class Words>
void run(const Args& a) {
    using T = typename Words::Number;
    const int64_t words = a.in / Words::kPer, hidden_words = a.hidden / Words::kPer;
    const Panels gated(a.hidden, kVectors / 2), last(a.out);
    const auto *in = static_cast<const float*>(a.weight_in), *out = static_cast<const float*>(a.weight_out);
    float* const first = weights_scratch.reserve(2 * a.hidden * words + a.out * hidden_words);
    float* const second = first + 2 * a.hidden * words;
    parallel_for(a.threads, parts(a.hidden, gated.width), [&](int64_t i) {
        const int64_t channel = i * gated.width, width = gated.end(channel, a.hidden) - channel;
        float *const own = scratch.reserve(words * kWidth), *const to = first + 2 * channel * words;
        pack(in + channel * words, words, width, own, to, 2 * width);
        pack(in + (a.hidden + channel) * words, words, width, own, to + width, 2 * width);
    });
    parallel_for(a.threads, parts(a.out, last.width), [&](int64_t i) {
        const int64_t channel = i * last.width, width = last.end(channel, a.out) - channel;
        float* const own = scratch.reserve(hidden_words * kWidth);
        pack(out + channel * hidden_words, hidden_words, width, own, second + channel * hidden_words, width);
    });

    const int64_t most_rows = least(most(kHidden / hidden_words / kRows, 1) * kRows, kMostRows);
    const int64_t share = parts(a.rows, a.threads);
    const int64_t count = parts(parts(share, parts(share, most_rows)), kRows) * kRows;
    parallel_for(a.threads, parts(a.rows, count), [&](int64_t i) {
        const int64_t begin = i * count, rows = least(count, a.rows - begin);
        const int64_t spare_words = kRows * most(words, hidden_words);
        float *const spare = scratch.reserve(spare_words + count * hidden_words), *const hidden =
                                                                                      spare + spare_words;
        const auto* x = reinterpret_cast<const float*>(static_cast<const T*>(a.x) + begin * a.in);
        T *const to_hidden = reinterpret_cast<T*>(hidden), *const y = static_cast<T*>(a.y) + begin * a.out;
        through_panels<Words>(x, rows, words, first, a.hidden, gated, 2, spare,
                              [&](int64_t row, int64_t channel, const vfloat* sums, int n) {
                                  for (int m = 0; m < n / 2; ++m) {
                                      const int64_t at = channel + m * kWidth;
                                      const vfloat h = sums[m] + load(a.bias_in + at);
                                      const vfloat g = sums[n / 2 + m] + load(a.bias_in + a.hidden + at);
                                      store(to_hidden + row * a.hidden + at, h * gelu(g));
                                  }
                              });
        through_panels<Words>(hidden, rows, hidden_words, second, a.out, last, 1, spare,
                              [&](int64_t row, int64_t channel, const vfloat* sums, int n) {
                                  for (int m = 0; m < n; ++m) {
                                      const int64_t at = channel + m * kWidth;
                                      store(y + row * a.out + at, sums[m] + load(a.bias_out + at));
                                  }
                              });
    });
}

}  // namespace

void feed_forward(const Args& a) {
#if defined(__AVX512BF16__)
    if (a.dtype == DType::bf16) return run<Pair>(a);
#endif
    run<Single>(a);
}

}  // namespace vidsmooth::VIDSMOOTH_ISA
