// out_n = (1 - w) v_n + w (f (v_{n-1} + e_n - e_{n-1}) + b (v_{n+1} + e_n - e_{n+1})), v inverted, e random
// noise
//
// With d = v - e:  out_n = ((1 - w) v_n + w (f + b) e_n) + w f d_{n-1} + w b d_{n+1}. Three frames in
// registers, as in noise_constraint.cu.
#include "cuda/walk.h"

namespace vidsmooth::cuda {
namespace {

struct Params {
    InversionBlendArgs a;
    Walk walk;
    int64_t frame;  // elements of an output frame
};

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2) blend(const __grid_constant__ Params p) {
    const uint32_t unit = this_thread();
    if (unit >= p.walk.units) return;
    const Place at = place<3>(p.walk, unit);
    const InversionBlendArgs& a = p.a;
    const int64_t F = p.walk.frames;
    const T* inverted = static_cast<const T*>(a.inverted.data) + at.offset[0];
    const T* noise = static_cast<const T*>(a.noise.data) + at.offset[1];
    T* out = static_cast<T*>(a.out) + at.offset[2];
    const float f = a.weight * a.forward, b = a.weight * a.backward;

    const auto source = [&](int64_t m, Floats<V>& d, Floats<V>& kept) {
        const Floats<V> v = values(load<T, V>(inverted + m * a.inverted.stride[2]));
        const Floats<V> e = values(load<T, V>(noise + m * a.noise.stride[2]));
        d = v;
        add(d, -1.f, e);
        kept = F == 1 ? v : Floats<V>{};
        if (F == 1) return;  // a single frame is returned as it came
        add(kept, 1 - a.weight, v);
        add(kept, f + b, e);
    };
    const auto taps = [&](int64_t n, float& before, float& after) {
        before = f, after = b;
        if (F == 1)
            before = after = 0;
        else if (!a.loop && n == 0)
            before = 0, after = f + b;  // the one direction there is takes both weights
        else if (!a.loop && n == F - 1)
            before = f + b, after = 0;
    };
    const auto sink = [&](int64_t n, const Floats<V>& kept, Floats<V>& change) {
        add(change, 1.f, kept);
        store(out + n * p.frame, change);
    };
    march<Floats<V>, V>(at.first, at.last, F, a.loop, source, taps, sink);
}

template <class T>
void run(const InversionBlendArgs& a, Stream stream) {
    constexpr int lanes = 16 / sizeof(T);
    const int64_t frame = a.size[3] * a.size[4];
    const OnDevice device(stream, "inversion_blend");
    Grid grid(a.size);
    grid.add(a.inverted);
    grid.add(a.noise);
    grid.add_output();
    grid.merge();
    const bool packs = packable(a.out, frame, lanes, sizeof(T)) &&
                       packable(a.inverted.data, a.inverted.stride[2], lanes, sizeof(T)) &&
                       packable(a.noise.data, a.noise.stride[2], lanes, sizeof(T));
    const Params p{a, plan(grid, 0, packs, lanes, device.processors()), frame};
    p.walk.packed ? launch("inversion_blend", blend<T, lanes>, p.walk.blocks(), kThreads, p, stream)
                  : launch("inversion_blend", blend<T, 1>, p.walk.blocks(), kThreads, p, stream);
}

}  // namespace

void inversion_blend(const InversionBlendArgs& a, Stream stream) {
    by_dtype(a.dtype, [&](auto element) { run<decltype(element)>(a, stream); });
}

}  // namespace vidsmooth::cuda
