// out_f = sum_i w_i v_i / sum_i w_i over the windows i that contain frame f
#include "cuda/merge.h"

namespace vidsmooth::cuda {
namespace {

struct Params {
    Windows windows;
    Walk walk;
    void* out;
    int64_t frame;  // elements of an output frame
};

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2) merge(const __grid_constant__ Params p) {
    const uint32_t unit = this_thread();
    if (unit >= p.walk.units) return;
    const Place at = place<3>(p.walk, unit);
    const T* data = static_cast<const T*>(p.windows.data) + at.offset[0];
    T* out = static_cast<T*>(p.out) + at.offset[2];
    for (int64_t n = at.first; n < at.last; ++n)
        store(out + n * p.frame, merged<T, V>(p.windows, data, p.windows.weights + at.offset[1], n));
}

template <class T>
void run(const WindowMergeArgs& a, Stream stream) {
    constexpr int lanes = 16 / sizeof(T);
    const int64_t frame = a.size[3] * a.size[4];
    const OnDevice device(stream, "window_merge");
    Grid grid(a.size);
    add_windows(grid, a.windows);
    grid.add_output();
    grid.merge();
    const bool packs = packable<T>(a.windows, lanes) && packable(a.out, frame, lanes, sizeof(T));
    const Params p{Windows(a.windows, grid.stride[1][3]),
                   plan(grid, 1 << 1, packs, lanes, device.processors()), a.out, frame};
    p.walk.packed ? launch("window_merge", merge<T, lanes>, p.walk.blocks(), kThreads, p, stream)
                  : launch("window_merge", merge<T, 1>, p.walk.blocks(), kThreads, p, stream);
}

}  // namespace

void window_merge(const WindowMergeArgs& a, Stream stream) {
    by_dtype(a.dtype, [&](auto element) { run<decltype(element)>(a, stream); });
}

}  // namespace vidsmooth::cuda
