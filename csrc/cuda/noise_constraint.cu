// out_n = eps_n - strength * (D eps_n - c D x_n + D r_n),  D y_n = 2 y_n - y_{n-1} - y_{n+1}
//
// With d = eps - c x + r:  out_n = (eps_n - 2 strength d_n) + strength (d_{n-1} + d_{n+1}). A thread walks
// along the frames with three of them in registers, so that memory is read once; three reads through the L2
// cache would ask it for more than twice what memory delivers.
#include "cuda/walk.h"

namespace vidsmooth::cuda {
namespace {

struct Params {
    NoiseConstraintArgs a;
    Walk walk;
    int64_t frame;  // elements of an output frame
};

template <class T, int V, bool HasReference>
__global__ void __launch_bounds__(kThreads, 2) constrain(const __grid_constant__ Params p) {
    const uint32_t unit = this_thread();
    if (unit >= p.walk.units) return;
    const Place at = place<4>(p.walk, unit);
    const NoiseConstraintArgs& a = p.a;
    const int64_t F = p.walk.frames;
    const T* eps = static_cast<const T*>(a.eps.data) + at.offset[0];
    const T* x = static_cast<const T*>(a.x.data) + at.offset[1];
    const T* r = static_cast<const T*>(a.reference.data) + at.offset[2];
    T* out = static_cast<T*>(a.out) + at.offset[3];
    const auto ends = [&](int64_t n) { return !a.loop && (n == 0 || n == F - 1); };

    const auto source = [&](int64_t m, Floats<V>& d, Floats<V>& kept) {
        const Floats<V> e = values(load<T, V>(eps + m * a.eps.stride[2]));
        d = e;
        add(d, -a.c_over_lambda, values(load<T, V>(x + m * a.x.stride[2])));
        if constexpr (HasReference) add(d, 1.f, values(load<T, V>(r + m * a.reference.stride[2])));
        kept = e;
        if (!ends(m)) add(kept, -2 * a.strength, d);
    };
    const auto taps = [&](int64_t n, float& before, float& after) {
        before = after = ends(n) ? 0.f : a.strength;
    };
    const auto sink = [&](int64_t n, const Floats<V>& kept, Floats<V>& change) {
        add(change, 1.f, kept);
        store(out + n * p.frame, change);
    };
    march<Floats<V>, V>(at.first, at.last, F, a.loop, source, taps, sink);
}

template <class T>
void run(const NoiseConstraintArgs& a, Stream stream) {
    constexpr int lanes = 16 / sizeof(T);
    const int64_t frame = a.size[3] * a.size[4];
    const OnDevice device(stream, "noise_constraint");
    Grid grid(a.size);
    grid.add(a.eps);
    grid.add(a.x);
    grid.add(a.reference);
    grid.add_output();
    grid.merge();
    bool packs = packable(a.out, frame, lanes, sizeof(T));
    for (const Operand* o : {&a.eps, &a.x, &a.reference})
        packs = packs && packable(o->data, o->stride[2], lanes, sizeof(T));
    const Params p{a, plan(grid, a.reference.data ? 0 : 1 << 2, packs, lanes, device.processors()), frame};
    const bool r = a.reference.data;
    if (p.walk.packed)
        r ? launch("noise_constraint", constrain<T, lanes, true>, p.walk.blocks(), kThreads, p, stream)
          : launch("noise_constraint", constrain<T, lanes, false>, p.walk.blocks(), kThreads, p, stream);
    else
        r ? launch("noise_constraint", constrain<T, 1, true>, p.walk.blocks(), kThreads, p, stream)
          : launch("noise_constraint", constrain<T, 1, false>, p.walk.blocks(), kThreads, p, stream);
}

}  // namespace

void noise_constraint(const NoiseConstraintArgs& a, Stream stream) {
    by_dtype(a.dtype, [&](auto element) { run<decltype(element)>(a, stream); });
}

}  // namespace vidsmooth::cuda
