// out_n = (1 - w) v_n + w (f (v_{n-1} + e_n - e_{n-1}) + b (v_{n+1} + e_n - e_{n+1})), v inverted, e random
// noise
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
    const Units units(grid, a.threads);
    const bool stream = streams(a.size[0] * a.size[1] * F * frame * sizeof(T));
    const float keep = 1 - a.weight, f = a.weight * a.forward, b = a.weight * a.backward;

    parallel_for(units.threads, units.count, [&](int64_t index) {
        const Unit u = units[index];
        Rows<T> v(a.inverted.data, u.offset[0], grid.stride[0][3], a.inverted.stride[2], F, u.length);
        Rows<T> e(a.noise.data, u.offset[1], grid.stride[1][3], a.noise.stride[2], F, u.length);
        T* out = static_cast<T*>(a.out) + u.offset[2];
        for (int64_t n = u.first; n < u.last; ++n) {
            const T* v0 = v[n];
            T* o = out + n * frame;
            if (F == 1) {
                fill_row(stream, o, u.length, [=](auto at) { return at(v0); });
            } else if (!a.loop && (n == 0 || n == F - 1)) {  // the one direction there is takes both weights
                const int64_t m = n == 0 ? 1 : n - 1;
                const T *vm = v[m], *em = e[m], *e0 = e[n];
                fill_row(stream, o, u.length,
                         [=](auto at) { return keep * at(v0) + (f + b) * (at(vm) + at(e0) - at(em)); });
            } else {
                const T *vm = v[n - 1], *vp = v[n + 1], *em = e[n - 1], *e0 = e[n], *ep = e[n + 1];
                fill_row(stream, o, u.length, [=](auto at) {
                    return keep * at(v0) + f * (at(vm) + at(e0) - at(em)) + b * (at(vp) + at(e0) - at(ep));
                });
            }
        }
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
