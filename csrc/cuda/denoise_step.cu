// p = sum_g w_g merge(pred_g);  e = to_eps . (x, p);  e' = noise_constraint(e, x)
// out = a x + b e' + c history + noise_scale noise;  clean = to_clean . (x, e')
//
// One pass over memory: what the constraint needs of the frames before and after stays in registers.
#include "cuda/merge.h"

namespace vidsmooth::cuda {
namespace {

struct Params {
    Windows pred;
    Walk walk;
    Operand x, reference, history, noise;
    float* out;
    float* clean;
    int64_t frame;  // elements of an output frame
    float a, b, c, noise_scale, to_eps[2], to_clean[2], c_over_lambda, strength;
    bool loop;
};

template <int V>
struct Kept {
    Floats<V> x, s;
};

template <class T, int V, bool Constrained>
__global__ void __launch_bounds__(kThreads, 2) step(const __grid_constant__ Params p) {
    const uint32_t unit = this_thread();
    if (unit >= p.walk.units) return;
    const Place at = place<7>(p.walk, unit);
    const int64_t F = p.walk.frames;
    const T* data = static_cast<const T*>(p.pred.data) + at.offset[0];
    const auto row = [&](const Operand& o, int i, int64_t n) {
        return values(load<float, V>(static_cast<const float*>(o.data) + at.offset[i] + n * o.stride[2]));
    };
    const auto ends = [&](int64_t n) { return !p.loop && (n == 0 || n == F - 1); };

    const auto source = [&](int64_t m, Floats<V>& d, Kept<V>& kept) {
        kept.x = row(p.x, 2, m);
        kept.s = Floats<V>{};
        if (p.to_eps[0] != 0) add(kept.s, p.to_eps[0], kept.x);
        add(kept.s, p.to_eps[1], merged<T, V>(p.pred, data, p.pred.weights + at.offset[1], m));
        if constexpr (Constrained) {
            d = kept.s;
            add(d, -p.c_over_lambda, kept.x);
            if (p.reference.data) add(d, 1.f, row(p.reference, 3, m));
            if (!ends(m)) add(kept.s, -2 * p.strength, d);
        }
    };
    const auto sink = [&](int64_t n, const Kept<V>& kept, Floats<V>& e) {
        add(e, 1.f, kept.s);
        Floats<V> next;
        add(next, p.a, kept.x);
        add(next, p.b, e);
        if (p.history.data) add(next, p.c, row(p.history, 4, n));
        if (p.noise.data) add(next, p.noise_scale, row(p.noise, 5, n));
        store(p.out + at.offset[6] + n * p.frame, next);
        if (!p.clean) return;
        Floats<V> clean;
        add(clean, p.to_clean[0], kept.x);
        add(clean, p.to_clean[1], e);
        store(p.clean + at.offset[6] + n * p.frame, clean);
    };
    if constexpr (Constrained) {
        const auto taps = [&](int64_t n, float& before, float& after) {
            before = after = ends(n) ? 0.f : p.strength;
        };
        march<Kept<V>, V>(at.first, at.last, F, p.loop, source, taps, sink);
    } else {
        for (int64_t n = at.first; n < at.last; ++n) {
            Floats<V> unused, none;
            Kept<V> kept;
            source(n, unused, kept);
            sink(n, kept, none);
        }
    }
}

template <class T>
void run(const DenoiseStepArgs& a, Stream stream) {
    constexpr int lanes = 4;  // 16 bytes of fp32; predictions in half precision come in packs of 8 bytes
    const int64_t frame = a.size[3] * a.size[4];
    const OnDevice device(stream, "denoise_step");
    Grid grid(a.size);
    add_windows(grid, a.pred);
    grid.add(a.x);
    grid.add(a.reference);
    grid.add(a.history);
    grid.add(a.noise);
    grid.add_output();
    grid.merge();
    bool packs =
        packable<T>(a.pred, lanes) && packable(a.out, frame, lanes, 4) && packable(a.clean, frame, lanes, 4);
    int loose = 1 << 1, index = 2;
    for (const Operand* o : {&a.x, &a.reference, &a.history, &a.noise}) {
        packs = packs && packable(o->data, o->stride[2], lanes, 4);
        loose |= o->data ? 0 : 1 << index;
        ++index;
    }
    const Params p{Windows(a.pred, grid.stride[1][3]),
                   plan(grid, loose, packs, lanes, device.processors()),
                   a.x,
                   a.reference,
                   a.history,
                   a.noise,
                   a.out,
                   a.clean,
                   frame,
                   a.a,
                   a.b,
                   a.c,
                   a.noise_scale,
                   {a.to_eps[0], a.to_eps[1]},
                   {a.to_clean[0], a.to_clean[1]},
                   a.c_over_lambda,
                   a.strength,
                   a.loop};
    const bool constrained = a.strength != 0;
    if (p.walk.packed)
        constrained ? launch("denoise_step", step<T, lanes, true>, p.walk.blocks(), kThreads, p, stream)
                    : launch("denoise_step", step<T, lanes, false>, p.walk.blocks(), kThreads, p, stream);
    else
        constrained ? launch("denoise_step", step<T, 1, true>, p.walk.blocks(), kThreads, p, stream)
                    : launch("denoise_step", step<T, 1, false>, p.walk.blocks(), kThreads, p, stream);
}

}  // namespace

void denoise_step(const DenoiseStepArgs& a, Stream stream) {
    by_dtype(a.dtype, [&](auto element) { run<decltype(element)>(a, stream); });
}

}  // namespace vidsmooth::cuda
