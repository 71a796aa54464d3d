// out_n = (1 - w) v_n + w (f (v_{n-1} + e_n - e_{n-1}) + b (v_{n+1} + e_n - e_{n+1})), v inverted, e random
// noise
//
// With d = v - e:  out_n = ((1 - w) v_n + w (f + b) e_n) + w f d_{n-1} + w b d_{n+1}
#include "cpu/neighbours.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace vidsmooth::VIDSMOOTH_ISA {
namespace {

template <class T>
void run(const InversionBlendArgs& a) {
    const int64_t F = a.size[2], frame = a.size[3] * a.size[4];
    Grid grid(a.size);
    grid.add(a.inverted);
    grid.add(a.noise);
    grid.add_output();
    grid.merge();
    const Units units(grid, a.threads, kSmallTile);
    const bool stream = streams(a.out, frame * sizeof(T), a.size[0] * a.size[1] * F * frame * sizeof(T));
    const float keep = 1 - a.weight, f = a.weight * a.forward, b = a.weight * a.backward;

    parallel_for(units.threads, units.count, [&](int64_t index) {
        const Unit u = units[index];
        Rows<T> v(a.inverted.data, u.offset[0], grid.stride[0][3], a.inverted.stride[2], F, u.length);
        Rows<T> e(a.noise.data, u.offset[1], grid.stride[1][3], a.noise.stride[2], F, u.length);
        T* const out = static_cast<T*>(a.out) + u.offset[2];
        const auto source = [&](int64_t m) {
            const T *vm = v[m], *vn = v.after(m), *em = e[m], *en = e.after(m);
            return [=](auto lanes, vfloat& d, vfloat& s) {
                lanes.prefetch(vn);
                lanes.prefetch(en);
                const vfloat inverted = lanes.load(vm), noise = lanes.load(em);
                d = inverted - noise;
                s = keep * inverted + (f + b) * noise;
            };
        };
        const auto taps = [&](int64_t n) {  // at an end the one direction there is takes both weights
            if (!a.loop && n == 0) return Taps{0, f + b};
            if (!a.loop && n == F - 1) return Taps{f + b, 0};
            return Taps{f, b};
        };
        const auto sink = [&](int64_t n) {
            const T* unchanged = F == 1 ? v[n] : nullptr;
            T* o = out + n * frame;
            return
                [=](auto lanes, vfloat value) { lanes.output(o, unchanged ? lanes.load(unchanged) : value); };
        };
        Neighbours(F, a.loop, u).run(stream, source, taps, sink);
        if (stream) finish_streams();
    });
}

}  // namespace

void inversion_blend(const InversionBlendArgs& a) {
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
