// The 32-bit words that products are made of: floats, or, for bf16 on processors that multiply it, pairs of
// numbers, which halves the products.
#pragma once

#include "cpu/attention_tiles.h"

namespace vidsmooth::VIDSMOOTH_ISA {

// What a word is: one float.
struct Single {
    using Number = float;
    static constexpr int kPer = 1;
    static constexpr uint32_t kSigns = 0x80000000;

    ALWAYS_INLINE static vfloat add(vfloat sum, vfloat x, float word) { return sum + x * word; }
    ALWAYS_INLINE static vfloat join(const vfloat* x) { return *x; }
};

#if defined(__AVX512BF16__)
// What a word is: two bf16, the first in its low half.
struct Pair {
    using Number = bf16;
    static constexpr int kPer = 2;
    static constexpr uint32_t kSigns = 0x80008000;

    ALWAYS_INLINE static vfloat add(vfloat sum, vfloat x, float word) {
        const auto pair = _mm512_castps_si512(_mm512_set1_ps(word));
        return (vfloat)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)pair);
    }
    ALWAYS_INLINE static vfloat join(const vfloat* x) {  // rounded to nearest
        const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)x[1], (__m512)x[0]);
        const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                               23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        return (vfloat)_mm512_maskz_permutexvar_epi16(~__mmask32{}, order, halves);
    }
};
#endif

}  // namespace vidsmooth::VIDSMOOTH_ISA
