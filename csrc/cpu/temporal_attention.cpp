// Temporal attention: softmax(q k^T scale) v over the F frames of every (batch entry, pixel, head), or over
// overlapping windows of them whose results are averaged by weights.
//
// The rows of one pixel lie P*h*d elements apart, often a multiple of the cache's set stride: read where they
// lie, they evict each other before they are used. So a thread copies small units (a few pixels, or some
// heads of one, all frames) into dense fp32 rows, and spreads the copying of the next unit and the writing of
// the last one between the micro-kernels of the present one, so that memory and FMA units work at the same
// time.
#include "cpu/attention_tiles.h"
#include "cpu/numbers.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace vidsmooth::VIDSMOOTH_ISA {
namespace {

using Args = TemporalAttentionArgs;

// How the work is cut. A unit: `pixels` neighbouring pixels and `heads` neighbouring heads of one batch
// entry.
struct Plan {
    int64_t heads, head_groups, pixels, pixel_groups, units;
    int64_t rows;    // of q, of k, of v and of the result in a unit: the frames, and those a window wraps to
    int64_t stride;  // floats from row to row

    explicit Plan(const Args& a) {
        rows = a.frames;
        for (int64_t n = 0; n < a.windows; ++n) rows = most(rows, a.starts[n] + a.window);
        // 2 KB runs, as long as both turns of q, k, v and the result stay within half of a 1 MB L2 cache.
        const int64_t room = most(1, least(512, 16384 / rows) / a.width);
        head_groups = parts(a.heads, least(a.heads, room));
        heads = parts(a.heads, head_groups);
        pixels = most(1, least(a.pixels, room / a.heads));
        pixel_groups = parts(a.pixels, pixels);
        units = a.batch * pixel_groups * head_groups;
        stride = parts(heads * a.width * pixels + kWidth, 16) * 16;
        if (stride / 16 % 2 == 0) stride += 16;  // an odd number of cache lines: rows in different cache sets
    }
};

struct Unit {
    int64_t batch, pixel, pixels, head, heads;

    Unit(const Args& a, const Plan& plan, int64_t index) {
        const int64_t group = index % plan.head_groups, rest = index / plan.head_groups;
        head = group * plan.heads;
        heads = least(plan.heads, a.heads - head);
        pixel = rest % plan.pixel_groups * plan.pixels;
        pixels = least(plan.pixels, a.pixels - pixel);
        batch = rest / plan.pixel_groups;
    }
};

thread_local Scratch scratch;

// Copies the runs of two units, one coming and one going, a few at a time.
template <class T>
class Mover {
  public:
    Mover(const Args& a, const Plan& plan, Unit unit) : a_(a), plan_(plan), coming_(unit), going_(unit) {}

    void fetch(Unit unit, float* to) {
        coming_ = unit;
        to_ = to;
        fetched_ = 0;
        fetches_ = 3 * a_.frames * unit.pixels;
    }
    void deliver(Unit unit, const float* from) {
        going_ = unit;
        from_ = from;
        delivered_ = 0;
        deliveries_ = a_.frames * unit.pixels;
    }
    // Have everything moved after `steps` calls of step().
    void pace(int64_t steps) { share_ = parts(fetches_ - fetched_ + deliveries_ - delivered_, steps); }

    ALWAYS_INLINE void step() {
        for (int64_t i = 0; i < share_; ++i) {
            if (delivered_ < deliveries_)
                deliver_one();
            else if (fetched_ < fetches_)
                fetch_one();
            else
                return;
        }
    }
    void finish() {
        while (delivered_ < deliveries_) deliver_one();
        while (fetched_ < fetches_) fetch_one();
    }

  private:
    static constexpr int64_t kAhead = 4;

    ALWAYS_INLINE const T* source(int64_t index) const {
        const int64_t row = index / coming_.pixels, pixel = coming_.pixel + index % coming_.pixels;
        const int64_t tensor = row / a_.frames, frame = row % a_.frames + coming_.batch * a_.frames;
        const int64_t at = frame * a_.stride[tensor][0] + pixel * a_.stride[tensor][1];
        return static_cast<const T*>(a_.in[tensor]) + at + coming_.head * a_.width;
    }
    void fetch_one() {
        const int64_t n = coming_.heads * a_.width;
        if (fetched_ + kAhead < fetches_) {
            const char* soon = reinterpret_cast<const char*>(source(fetched_ + kAhead));
            for (int64_t i = 0; i < n * int64_t(sizeof(T)); i += 64) __builtin_prefetch(soon + i);
        }
        const int64_t row = fetched_ / coming_.pixels, tensor = row / a_.frames, frame = row % a_.frames;
        const T* from = source(fetched_);
        float* to = to_ + (tensor * plan_.rows + frame) * plan_.stride + fetched_ % coming_.pixels * n;
        ++fetched_;
        widen_row(from, n, to);
        if (frame + a_.frames < plan_.rows)  // a window that wraps reads this frame again after the last one
            __builtin_memcpy(to + a_.frames * plan_.stride, to, n * sizeof(float));
    }
    void deliver_one() {
        const int64_t n = going_.heads * a_.width;
        const int64_t row = delivered_ / going_.pixels, pixel = delivered_ % going_.pixels;
        ++delivered_;
        const int64_t frame = going_.batch * a_.frames + row;
        T* to = static_cast<T*>(a_.out) + (frame * a_.pixels + going_.pixel + pixel) * a_.heads * a_.width;
        narrow_row(from_ + row * plan_.stride + pixel * n, n, to + going_.head * a_.width);
    }

    const Args& a_;
    const Plan& plan_;
    Unit coming_, going_;
    float* to_ = nullptr;
    const float* from_ = nullptr;
    int64_t fetched_ = 0, fetches_ = 0, delivered_ = 0, deliveries_ = 0, share_ = 1;
};

// One pixel and head in one window: W queries from row `first` on. q, k, v, out: rows of the window, (K, d).
template <int W, class T>
ALWAYS_INLINE void attend(const Args& a, int64_t stride, int64_t first, const float* q, const float* k,
                          const float* v, const float* factors, float* out, float* qt, float* p,
                          Mover<T>& mover) {
    const int64_t keys = a.window, queries = least(W, keys - first);
    transpose<W>(q + first * stride, stride, a.width, qt);
    for (int64_t j = 0; j < keys; j += 8) {
        score_tile<W>(int(least(8, keys - j)), qt, k + j * stride, stride, a.width, p + j * W);
        mover.step();
    }
    Lanes<W> factor = Lanes<W>{} + 1.f;
    for (int i = 0; factors && i < queries; ++i) factor[i] = factors[first + i];
    softmax<W>(p, keys, a.scale, factor);
    for (int64_t i = 0; i < queries; i += 4) {
        value_rows<W>(int(least(4, queries - i)), p + i, v, stride, keys, a.width, out + (first + i) * stride,
                      factors != nullptr);
        mover.step();
    }
}

// Everything that a unit computes, from `in` (q, k, v) to `out`, moving other units along the way.
template <class T>
void attend(const Args& a, const Plan& plan, const Unit& unit, const float* in, float* out, float* qt,
            float* p, Mover<T>& mover) {
    const int64_t blocks = parts(a.window, kWidth), tensor = plan.rows * plan.stride;
    mover.pace(unit.pixels * unit.heads * a.windows * (parts(a.window, 8) * blocks + parts(a.window, 4)));
    for (int64_t column = 0; column < unit.pixels * unit.heads * a.width; column += a.width) {
        for (int64_t row = 0; a.factors && row < plan.rows; ++row)
            __builtin_memset(out + row * plan.stride + column, 0, a.width * sizeof(float));
        for (int64_t n = 0; n < a.windows; ++n) {
            const int64_t at = a.starts[n] * plan.stride + column;
            const float *q = in + at, *k = q + tensor, *v = k + tensor;
            const float* factors = a.factors ? a.factors + n * a.window : nullptr;
            int64_t i = 0;
            for (; i + kWidth <= a.window; i += kWidth)
                attend<kWidth>(a, plan.stride, i, q, k, v, factors, out + at, qt, p, mover);
            if (kWidth == 16 && i < a.window && a.window - i <= 8)
                attend<kWidth == 16 ? 8 : kWidth>(a, plan.stride, i, q, k, v, factors, out + at, qt, p,
                                                  mover);
            else if (i < a.window)
                attend<kWidth>(a, plan.stride, i, q, k, v, factors, out + at, qt, p, mover);
        }
    }
    mover.finish();
    for (int64_t row = a.frames; row < plan.rows; ++row)
        add_row(out + row * plan.stride, plan.stride, out + (row - a.frames) * plan.stride);
}

template <class T>
void run_range(const Args& a, const Plan& plan, int64_t begin, int64_t end) {
    const int64_t in = (3 * plan.rows + kWidth) * plan.stride, out = plan.rows * plan.stride;
    float* memory = scratch.reserve(2 * (in + out) + (a.width + 3 + a.window) * kWidth);
    float *input[2] = {memory, memory + in}, *output[2] = {memory + 2 * in, memory + 2 * in + out};
    float *qt = memory + 2 * (in + out), *p = qt + (a.width + 3) * kWidth;

    Unit next(a, plan, begin);
    Mover<T> mover(a, plan, next);
    mover.fetch(next, input[0]);
    mover.finish();
    for (int64_t index = begin; index < end; ++index) {
        const int turn = (index - begin) & 1;
        const Unit unit = next;
        if (index + 1 < end) {
            next = Unit(a, plan, index + 1);
            mover.fetch(next, input[turn ^ 1]);
        }
        attend<T>(a, plan, unit, input[turn], output[turn], qt, p, mover);
        mover.deliver(unit, output[turn]);
    }
    mover.finish();
}

template <class T>
void run(const Args& a) {
    const Plan plan(a);
    const int64_t work = a.batch * a.frames * a.pixels * a.heads * a.width;
    const int threads = int(least(a.threads, most(1, work >> 14)));
    // A range starts without anything to overlap its first reads with, so it should be several units long.
    const int64_t ranges = threads == 1 ? 1 : most(threads, least(8 * threads, plan.units / 8));
    parallel_for(threads, ranges, [&](int64_t r) {
        const int64_t begin = plan.units * r / ranges, end = plan.units * (r + 1) / ranges;
        if (begin < end) run_range<T>(a, plan, begin, end);
    });
}

}  // namespace

void temporal_attention(const TemporalAttentionArgs& a) {
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
