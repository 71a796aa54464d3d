// out_n = eps_n - strength * (D eps_n - c D x_n + D r_n),  D y_n = 2 y_n - y_{n-1} - y_{n+1}
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace vidsmooth::VIDSMOOTH_ISA {
namespace {

template <class T, bool HasReference>
void run(const NoiseConstraintArgs& a) {
    const int64_t B = a.size[0], C = a.size[1], F = a.size[2], H = a.size[3], W = a.size[4];
    Grid grid(a.size);
    grid.add(a.eps);
    grid.add(a.x);
    grid.add(a.reference);
    grid.add_output();
    grid.merge();
    const Units units(grid, a.threads);
    const bool stream = streams(B * C * F * H * W * sizeof(T));
    const float c = a.c_over_lambda, strength = a.strength;

    parallel_for(units.threads, units.count, [&](int64_t index) {
        const Unit u = units[index];
        const auto rows = [&](const Operand& o, int i) {
            return Rows<T>(o.data, u.offset[i], grid.stride[i][3], o.stride[2], F, u.length);
        };
        Rows<T> eps = rows(a.eps, 0), x = rows(a.x, 1), r = rows(a.reference, 2);
        T* out = static_cast<T*>(a.out) + u.offset[3];
        for (int64_t n = u.first; n < u.last; ++n) {
            const T* e0 = eps[n];
            T* o = out + n * H * W;
            if (!a.loop && (n == 0 || n == F - 1)) {
                fill_row(stream, o, u.length, [=](auto at) { return at(e0); });
                continue;
            }
            const T *em = eps[n - 1], *ep = eps[n + 1], *xm = x[n - 1], *x0 = x[n], *xp = x[n + 1];
            if constexpr (HasReference) {
                const T *rm = r[n - 1], *r0 = r[n], *rp = r[n + 1];
                fill_row(stream, o, u.length, [=](auto at) {
                    const vfloat e = at(e0), de = 2.f * e - at(em) - at(ep),
                                 dx = 2.f * at(x0) - at(xm) - at(xp);
                    return e - strength * (de - c * dx + (2.f * at(r0) - at(rm) - at(rp)));
                });
            } else {
                fill_row(stream, o, u.length, [=](auto at) {
                    const vfloat e = at(e0), de = 2.f * e - at(em) - at(ep),
                                 dx = 2.f * at(x0) - at(xm) - at(xp);
                    return e - strength * (de - c * dx);
                });
            }
        }
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
