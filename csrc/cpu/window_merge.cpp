// out_f = sum_i w_i v_i / sum_i w_i over the windows i that contain frame f
#include "cpu/merge.h"
#include "cpu/parallel.h"

namespace vidsmooth::VIDSMOOTH_ISA {
namespace {

template <class T>
void run(const WindowMergeArgs& a) {
    const int64_t frame = a.size[3] * a.size[4];
    Grid grid(a.size);
    Merge<T>::add_to(grid, a.windows);
    grid.add_output();
    grid.merge();
    const Units units(grid, a.threads, kTile);
    const bool stream =
        streams(a.out, frame * sizeof(T), a.size[0] * a.size[1] * a.size[2] * frame * sizeof(T));

    parallel_for(units.threads, units.count, [&](int64_t index) {
        const Unit u = units[index];
        Merge<T> merge(a.windows, grid, u, 0);
        T* out = static_cast<T*>(a.out) + u.offset[2];
        for (int64_t n = u.first; n < u.last; ++n) {
            T* o = out + n * frame;
            merge.prepare(n);
            along_row(stream, u.length, [&merge, o](auto lanes) { lanes.output(o, merge.value(lanes)); });
        }
        if (stream) finish_streams();
    });
}

}  // namespace

void window_merge(const WindowMergeArgs& a) {
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
