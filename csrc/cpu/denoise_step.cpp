// p = sum_g w_g merge(pred_g);  e = to_eps . (x, p);  e' = noise_constraint(e, x)
// out = a x + b e' + c history + noise_scale noise;  clean = to_clean . (x, e')
//
// One pass over memory: merged predictions live in a ring of three tiles, which is what the constraint looks
// at.
#include "cpu/merge.h"
#include "cpu/parallel.h"

namespace vidsmooth::VIDSMOOTH_ISA {
namespace {

template <class T>
class Step {
  public:
    Step(const DenoiseStepArgs& a, const Grid& grid, const Unit& u)
        : a_(a),
          u_(u),
          pred_(a.pred, grid, u, 0),
          x_(a.x.data, u.offset[2], grid.stride[2][3], a.x.stride[2], a.size[2], u.length),
          r_(a.reference.data, u.offset[3], grid.stride[3][3], a.reference.stride[2], a.size[2], u.length),
          history_(a.history.data, u.offset[4], grid.stride[4][3], a.history.stride[2], a.size[2], u.length),
          noise_(a.noise.data, u.offset[5], grid.stride[5][3], a.noise.stride[2], a.size[2], u.length) {}

    void frame(int64_t n, float* out, float* clean, bool stream) {
        const float* x = x_[n];
        const float* e = constrained(n);
        const float* h = a_.history.data ? history_[n] : nullptr;
        const float* z = a_.noise.data ? noise_[n] : nullptr;
        const float a = a_.a, b = a_.b, c = a_.c, scale = a_.noise_scale;
        fill_row(stream, out, u_.length, [=](auto at) {
            vfloat next = a * at(x) + b * at(e);
            if (h) next += c * at(h);
            if (z) next += scale * at(z);
            return next;
        });
        const float c0 = a_.to_clean[0], c1 = a_.to_clean[1];
        if (clean) fill_row(stream, clean, u_.length, [=](auto at) { return c0 * at(x) + c1 * at(e); });
    }

  private:
    // Merged, guided, as noise; n may be one before the first frame or one after the last, in a loop.
    const float* eps(int64_t n) {
        const int64_t F = a_.size[2];
        const int slot = (n + 3) % 3;  // three successive frames never share a slot
        if (held_[slot] == n) return eps_[slot];
        held_[slot] = n;
        const int64_t wrapped = n < 0 ? F - 1 : n == F ? 0 : n;
        const float* x = x_[n];
        const float e0 = a_.to_eps[0], e1 = a_.to_eps[1];
        if (e0 == 0)
            pred_.frame(wrapped, Cached{}, eps_[slot], [=](vfloat p, auto) { return e1 * p; });
        else
            pred_.frame(wrapped, Cached{}, eps_[slot],
                        [=](vfloat p, auto at) { return e0 * at(x) + e1 * p; });
        return eps_[slot];
    }

    const float* constrained(int64_t n) {
        if (a_.strength == 0 || (!a_.loop && (n == 0 || n == a_.size[2] - 1))) return eps(n);
        const float *em = eps(n - 1), *e0 = eps(n), *ep = eps(n + 1);
        const float *xm = x_[n - 1], *x0 = x_[n], *xp = x_[n + 1];
        const bool pulled = a_.reference.data;
        const float *rm = pulled ? r_[n - 1] : nullptr, *r0 = pulled ? r_[n] : nullptr,
                    *rp = pulled ? r_[n + 1] : nullptr;
        const float c = a_.c_over_lambda, strength = a_.strength;
        fill_row(Cached{}, result_, u_.length, [=](auto at) {
            const vfloat e = at(e0), de = 2.f * e - at(em) - at(ep), dx = 2.f * at(x0) - at(xm) - at(xp);
            vfloat change = de - c * dx;
            if (pulled) change += 2.f * at(r0) - at(rm) - at(rp);
            return e - strength * change;
        });
        return result_;
    }

    const DenoiseStepArgs& a_;
    const Unit& u_;
    Merge<T> pred_;
    Rows<float> x_, r_, history_, noise_;
    int64_t held_[3] = {-2, -2, -2};
    float eps_[3][kTile], result_[kTile];
};

template <class T>
void run(const DenoiseStepArgs& a) {
    const int64_t frame = a.size[3] * a.size[4];
    Grid grid(a.size);
    Merge<T>::add_to(grid, a.pred);
    grid.add(a.x);
    grid.add(a.reference);
    grid.add(a.history);
    grid.add(a.noise);
    grid.add_output();
    grid.merge();
    const Units units(grid, a.threads);
    const bool stream = streams(a.size[0] * a.size[1] * a.size[2] * frame * sizeof(float));

    parallel_for(units.threads, units.count, [&](int64_t index) {
        const Unit u = units[index];
        Step<T> step(a, grid, u);
        for (int64_t n = u.first; n < u.last; ++n) {
            const int64_t at = u.offset[6] + n * frame;
            step.frame(n, a.out + at, a.clean ? a.clean + at : nullptr, stream);
        }
        if (stream) finish_streams();
    });
}

}  // namespace

void denoise_step(const DenoiseStepArgs& a) {
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
