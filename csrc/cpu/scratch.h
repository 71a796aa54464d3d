#pragma once

#include <stdint.h>
#include <stdlib.h>

namespace vidsmooth::VIDSMOOTH_ISA {

// Memory that a thread keeps: a fresh 300 KB costs 75 page faults, more than a small call takes.
struct Scratch {
    float* data = nullptr;
    int64_t size = 0;
    ~Scratch() { free(data); }

    float* reserve(int64_t floats) {
        if (floats > size) {
            free(data);
            void* p = nullptr;
            if (posix_memalign(&p, 64, floats * sizeof(float)) != 0) abort();
            __builtin_memset(p, 0, floats * sizeof(float));
            data = static_cast<float*>(p);
            size = floats;
        }
        return data;
    }
};

}  // namespace vidsmooth::VIDSMOOTH_ISA
