// Enough of CUDA for a host compiler to run csrc/cuda/*.cu on a CPU: the threads of a block take turns. A
// warp whose lanes talk to each other runs as 32 coroutines that wait for one another; the products of the
// matrix units are computed from the layouts in the PTX manual ("Warp Level Matrix Multiply-Accumulate
// Instructions").
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>

#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)

struct uint4 {
    uint32_t x, y, z, w;
};
struct Index {
    unsigned x;
};
inline Index threadIdx, blockIdx;

namespace vidsmooth::cuda {

struct OnDevice {
    OnDevice(Stream, const char*) {}
    int processors() const { return 1; }
};

// The 32 coroutines of the warp that runs, and what they show each other.
struct Warp {
    static constexpr size_t kStack = 256 << 10;
    ucontext_t scheduler, lanes[32];
    std::unique_ptr<char[]> stacks{new char[32 * kStack]};
    bool done[32];
    int current = 0;
    uint32_t shown[32][6];

    void wait() { swapcontext(&lanes[current], &scheduler); }

    template <class Body>
    void run(const Body& body) {
        body_ = [](void* context) { (*static_cast<const Body*>(context))(); };
        context_ = const_cast<void*>(static_cast<const void*>(&body));
        for (int i = 0; i < 32; ++i) {
            getcontext(&lanes[i]);
            lanes[i].uc_stack.ss_sp = stacks.get() + i * kStack;
            lanes[i].uc_stack.ss_size = kStack;
            lanes[i].uc_link = &scheduler;
            done[i] = false;
            makecontext(&lanes[i], enter, 0);
        }
        const unsigned first = threadIdx.x;
        for (bool left = true; left;) {
            left = false;
            for (current = 0; current < 32; ++current) {
                threadIdx.x = first + current;
                if (!done[current]) swapcontext(&scheduler, &lanes[current]);
                left = left || !done[current];
            }
        }
    }

  private:
    static void enter();
    void (*body_)(void*);
    void* context_;
};
inline Warp warp;

inline void Warp::enter() {
    warp.body_(warp.context_);
    warp.done[warp.current] = true;
}

inline int lane() {
    return warp.current;
}

inline float exchange(float v, int mask) {
    memcpy(&warp.shown[lane()][0], &v, 4);
    warp.wait();
    float other;
    memcpy(&other, &warp.shown[lane() ^ mask][0], 4);
    warp.wait();
    return other;
}

inline bool any(bool mine) {
    warp.shown[lane()][0] = mine;
    warp.wait();
    bool some = false;
    for (auto& shown : warp.shown) some = some || shown[0];
    warp.wait();
    return some;
}

template <class Params>
void launch(const char*, void (*kernel)(Params), int64_t blocks, int threads, const Params& params, Stream) {
    for (int64_t block = 0; block < blocks; ++block) {
        for (int thread = 0; thread < threads; thread += 32) {
            blockIdx.x = static_cast<unsigned>(block);
            threadIdx.x = static_cast<unsigned>(thread);
            warp.run([&] { kernel(params); });
        }
    }
}

}  // namespace vidsmooth::cuda
