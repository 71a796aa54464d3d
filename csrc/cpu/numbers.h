#pragma once

#include <stdint.h>

namespace vidsmooth::VIDSMOOTH_ISA {

constexpr int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}
constexpr int64_t most(int64_t a, int64_t b) {
    return a > b ? a : b;
}

}  // namespace vidsmooth::VIDSMOOTH_ISA
