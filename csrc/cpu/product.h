// The matrix product in registers that the convolution and the feed-forward share: a few rows of numbers,
// read where they lie, times a panel of weights that was put in order before.
//
// Rows are of words (words.h): floats, or pairs of neighbouring columns. A panel has, word by word, the
// weights of its output channels one after the other.
#pragma once

#include "cpu/numbers.h"
#include "cpu/words.h"

namespace vidsmooth::VIDSMOOTH_ISA {

constexpr int64_t kSummed = 256;  // words that are summed up at once: an error less than that of one long sum
constexpr int kRows = 6,
              kVectors = kWidth == 16 ? 4 : 2;  // rows, vectors of output channels in the registers

// Channels in panels of at most `vectors` vectors, about equally wide.
struct Panels {
    int64_t width;

    explicit Panels(int64_t channels, int64_t vectors = kVectors) {
        const int64_t all = channels / kWidth;
        width = parts(all, parts(all, vectors)) * kWidth;
    }
    int64_t end(int64_t begin, int64_t channels) const { return least(begin + width, channels); }
};

// Weights (width, words) into a panel: to (words, step). scratch: words * kWidth floats.
inline void pack(const float* weights, int64_t words, int64_t width, float* scratch, float* to,
                 int64_t step) {
    for (int64_t channel = 0; channel < width; channel += kWidth) {
        transpose<kWidth>(weights + channel * words, words, words, scratch);
        for (int64_t c = 0; c < words; ++c) store(to + c * step + channel, load(scratch + c * kWidth));
    }
}

// use(i, sums of M vectors) for kRows rows i of x, `stride` words apart, times a panel (words, M kWidth)
template <class Words, int M, class Use>
ALWAYS_INLINE void product(const float* x, int64_t stride, const float* panel, int64_t words,
                           const Use& use) {
    vfloat sum[kRows][M] = {}, before[kRows][M];
    for (int64_t begin = 0; begin < words; begin += kSummed) {
        for (int64_t c = begin; c < least(begin + kSummed, words); ++c) {
            vfloat weights[M];
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) weights[m] = load(panel + (c * M + m) * kWidth);
#pragma GCC unroll 6
            for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
                for (int m = 0; m < M; ++m) sum[i][m] = Words::add(sum[i][m], weights[m], x[i * stride + c]);
        }
        const bool last = begin + kSummed >= words;
        if (begin == 0 && last) break;
#pragma GCC unroll 6
        for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) {
                if (begin) sum[i][m] += before[i][m];
                if (last) continue;
                before[i][m] = sum[i][m];
                sum[i][m] = vfloat{};
            }
    }
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) use(i, sum[i]);
}

// The same for a panel of so many vectors: use(i, sums, vectors).
template <class Words, class Use>
ALWAYS_INLINE void product(int64_t vectors, const float* x, int64_t stride, const float* panel, int64_t words,
                           const Use& use) {
    switch (vectors) {
        case 1:
            return product<Words, 1>(x, stride, panel, words, [&](int i, const vfloat* s) { use(i, s, 1); });
        case 2:
            return product<Words, 2>(x, stride, panel, words, [&](int i, const vfloat* s) { use(i, s, 2); });
        case 3:
            return product<Words, least(3, kVectors)>(x, stride, panel, words,
                                                      [&](int i, const vfloat* s) { use(i, s, 3); });
        default:
            return product<Words, kVectors>(x, stride, panel, words,
                                            [&](int i, const vfloat* s) { use(i, s, kVectors); });
    }
}

}  // namespace vidsmooth::VIDSMOOTH_ISA
