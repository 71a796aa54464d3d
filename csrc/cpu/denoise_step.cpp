// p = sum_g w_g merge(pred_g);  e = to_eps . (x, p);  e' = noise_constraint(e, x)
// out = a x + b e' + c history + noise_scale noise;  clean = to_clean . (x, e')
//
// One pass over memory: what the constraint needs of the frames before and after stays in cached tiles.
#include "cpu/merge.h"
#include "cpu/neighbours.h"
#include "cpu/parallel.h"

namespace vidsmooth::VIDSMOOTH_ISA {
namespace {

template <class T>
class Step {
  public:
    Step(const DenoiseStepArgs& a, const Grid& grid, const Unit& u, bool stream)
        : a_(a),
          u_(u),
          stream_(stream),
          pred_(a.pred, grid, u, 0),
          x_(a.x.data, u.offset[2], grid.stride[2][3], a.x.stride[2], a.size[2], u.length),
          r_(a.reference.data, u.offset[3], grid.stride[3][3], a.reference.stride[2], a.size[2], u.length),
          history_(a.history.data, u.offset[4], grid.stride[4][3], a.history.stride[2], a.size[2], u.length),
          noise_(a.noise.data, u.offset[5], grid.stride[5][3], a.noise.stride[2], a.size[2], u.length) {}

    void run() {
        if (a_.strength == 0)
            plain();
        else if (a_.reference.data)
            constrained<true>();
        else
            constrained<false>();
    }

  private:
    // For frame m, a function of lanes: the merged, guided prediction as noise.
    auto eps(int64_t m) {
        pred_.prepare(m < 0 ? a_.size[2] - 1 : m == a_.size[2] ? 0 : m);
        const float *x = x_[m], *next = x_.after(m);
        const float e0 = a_.to_eps[0], e1 = a_.to_eps[1];
        return [this, x, next, e0, e1](auto lanes) {
            lanes.prefetch(next);
            const vfloat p = e1 * pred_.value(lanes);
            return e0 == 0 ? p : e0 * lanes.load(x) + p;
        };
    }

    // For frame n, a function of (lanes, e') that writes the results.
    auto sink(int64_t n) {
        const int64_t at = u_.offset[6] + n * a_.size[3] * a_.size[4];
        const float* x = x_[n];
        const float *h = a_.history.data ? history_[n] : nullptr, *z = a_.noise.data ? noise_[n] : nullptr;
        const float *hn = h ? history_.after(n) : x, *zn = z ? noise_.after(n) : x;
        float *out = a_.out + at, *clean = a_.clean ? a_.clean + at : nullptr;
        const float a = a_.a, b = a_.b, c = a_.c, scale = a_.noise_scale, c0 = a_.to_clean[0],
                    c1 = a_.to_clean[1];
        return [=](auto lanes, vfloat e) {
            const vfloat xn = lanes.load(x);
            vfloat next = a * xn + b * e;
            if (h) {
                lanes.prefetch(hn);
                next += c * lanes.load(h);
            }
            if (z) {
                lanes.prefetch(zn);
                next += scale * lanes.load(z);
            }
            lanes.output(out, next);
            if (clean) lanes.output(clean, c0 * xn + c1 * e);
        };
    }

    void plain() {
        for (int64_t n = u_.first; n < u_.last; ++n) {
            const auto read = eps(n);
            const auto write = sink(n);
            along_row(stream_, u_.length, [=](auto lanes) { write(lanes, read(lanes)); });
        }
    }

    // As in noise_constraint.cpp; at the ends of an open video s is e itself.
    template <bool HasReference>
    void constrained() {
        const int64_t F = a_.size[2];
        const float c = a_.c_over_lambda, strength = a_.strength;
        const auto source = [&](int64_t m) {
            const auto read = eps(m);
            const float* x = x_[m];
            const float *r = HasReference ? r_[m] : nullptr, *rn = HasReference ? r_.after(m) : nullptr;
            const float own = !a_.loop && (m == 0 || m == F - 1) ? 0 : 2 * strength;
            return [=](auto lanes, vfloat& d, vfloat& s) {
                const vfloat e = read(lanes);
                d = e - c * lanes.load(x);
                if constexpr (HasReference) {
                    lanes.prefetch(rn);
                    d += lanes.load(r);
                }
                s = e - own * d;
            };
        };
        const auto taps = [&](int64_t n) {
            return !a_.loop && (n == 0 || n == F - 1) ? Taps{0, 0} : Taps{strength, strength};
        };
        Neighbours(F, a_.loop, u_).run(stream_, source, taps, [&](int64_t n) { return sink(n); });
    }

    const DenoiseStepArgs& a_;
    const Unit& u_;
    const bool stream_;
    Merge<T> pred_;
    Rows<float> x_, r_, history_, noise_;
};

template <class T>
void run(const DenoiseStepArgs& a) {
    const int64_t frame = a.size[3] * a.size[4] * sizeof(float);
    Grid grid(a.size);
    Merge<T>::add_to(grid, a.pred);
    grid.add(a.x);
    grid.add(a.reference);
    grid.add(a.history);
    grid.add(a.noise);
    grid.add_output();
    grid.merge();
    const Units units(grid, a.threads, a.strength == 0 ? kTile : kSmallTile);
    const int64_t all = a.size[0] * a.size[1] * a.size[2] * frame * (a.clean ? 2 : 1);
    const bool stream = streams(a.out, frame, all) && (!a.clean || streams(a.clean, frame, all));

    parallel_for(units.threads, units.count, [&](int64_t index) {
        const Unit u = units[index];
        Step<T>(a, grid, u, stream).run();
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
