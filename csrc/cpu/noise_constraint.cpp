// out_n = eps_n - strength * (D eps_n - c D x_n + D r_n),  D y_n = 2 y_n - y_{n-1} - y_{n+1}
//
// With d = eps - c x + r:  out_n = (eps_n - 2 strength d_n) + strength (d_{n-1} + d_{n+1})
#include "cpu/neighbours.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace vidsmooth::VIDSMOOTH_ISA {
namespace {

template <class T, bool HasReference>
void run(const NoiseConstraintArgs& a) {
    const int64_t F = a.size[2], frame = a.size[3] * a.size[4];
    Grid grid(a.size);
    grid.add(a.eps);
    grid.add(a.x);
    grid.add(a.reference);
    grid.add_output();
    grid.merge();
    const Units units(grid, a.threads, kSmallTile);
    const bool stream = streams(a.out, frame * sizeof(T), a.size[0] * a.size[1] * F * frame * sizeof(T));
    const float c = a.c_over_lambda, strength = a.strength;

    parallel_for(units.threads, units.count, [&](int64_t index) {
        const Unit u = units[index];
        const auto rows = [&](const Operand& o, int i) {
            return Rows<T>(o.data, u.offset[i], grid.stride[i][3], o.stride[2], F, u.length);
        };
        Rows<T> eps = rows(a.eps, 0), x = rows(a.x, 1), r = rows(a.reference, 2);
        T* const out = static_cast<T*>(a.out) + u.offset[3];
        const auto ends = [&](int64_t n) { return !a.loop && (n == 0 || n == F - 1); };
        const auto source = [&](int64_t m) {
            const T *em = eps[m], *en = eps.after(m), *xm = x[m], *xn = x.after(m);
            const T *rm = HasReference ? r[m] : nullptr, *rn = HasReference ? r.after(m) : nullptr;
            const float own = ends(m) ? 0 : 2 * strength;
            return [=](auto lanes, vfloat& d, vfloat& s) {
                lanes.prefetch(en);
                lanes.prefetch(xn);
                const vfloat e = lanes.load(em);
                d = e - c * lanes.load(xm);
                if constexpr (HasReference) {
                    lanes.prefetch(rn);
                    d += lanes.load(rm);
                }
                s = e - own * d;
            };
        };
        const auto taps = [&](int64_t n) { return ends(n) ? Taps{0, 0} : Taps{strength, strength}; };
        const auto sink = [&](int64_t n) {
            T* o = out + n * frame;
            return [=](auto lanes, vfloat value) { lanes.output(o, value); };
        };
        Neighbours(F, a.loop, u).run(stream, source, taps, sink);
        if (stream) finish_streams();
    });
}

template <class T>
void run(const NoiseConstraintArgs& a) {
    a.reference.data ? run<T, true>(a) : run<T, false>(a);
}

}  // namespace

void noise_constraint(const NoiseConstraintArgs& a) {
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
