// The weighted mean of the windows that contain a frame, summed over guidance branches, one pack of pixels at
// a time.
#pragma once

#include "cuda/walk.h"

namespace vidsmooth::cuda {

struct Windows {  // a WindowStack as it travels with a launch
    const void* data;
    int64_t window_stride, frame_stride, branch_stride, weight_stride;
    int64_t pixel_stride;  // of the weights, from one pixel of a pack to the next
    const float* weights;
    const int64_t *first, *window, *position;
    int branches;
    bool uniform;  // one weight per window and frame, not per pixel
    float branch_weights[kBranches];

    Windows(const WindowStack& w, int64_t pixel_stride)
        : data(w.data),
          window_stride(w.stride[1]),
          frame_stride(w.stride[3]),
          branch_stride(w.branch_stride),
          weight_stride(w.weight_stride[1]),
          pixel_stride(pixel_stride),
          weights(w.weights),
          first(w.first),
          window(w.window),
          position(w.position),
          branches(static_cast<int>(w.branches)),
          uniform(w.weight_stride[0] == 0 && w.weight_stride[2] == 0 && w.weight_stride[3] == 0) {
        for (int g = 0; g < branches; ++g) branch_weights[g] = w.branch_weights[g];
    }
};

// Operands 0 and 1 of the grid are the windows and their weights.
inline void add_windows(Grid& grid, const WindowStack& w) {
    grid.add(w.stride[0], w.stride[2], w.stride[4], w.stride[5]);
    grid.add(0, w.weight_stride[0], w.weight_stride[2], w.weight_stride[3]);
}

// Whether the windows may be read in packs; a weight per pixel is read element by element, beside packs.
template <class T>
bool packable(const WindowStack& w, int lanes) {
    return packable(w.data, w.stride[3], lanes, sizeof(T)) && multiple(w.stride[1], lanes) &&
           multiple(w.branch_stride, lanes);
}

template <class T, int V>
__device__ inline Floats<V> guided(const Windows& w, const T* data, int64_t i) {
    const T* at = data + w.window[i] * w.window_stride + w.position[i] * w.frame_stride;
    Floats<V> sum;
#pragma unroll 2
    for (int g = 0; g < w.branches; ++g)
        add(sum, w.branch_weights[g], values(load<T, V>(at + g * w.branch_stride)));
    return sum;
}

// data, weights: at this thread's pixels.
template <class T, int V>
__device__ inline Floats<V> merged(const Windows& w, const T* data, const float* weights, int64_t frame) {
    const int64_t begin = w.first[frame], end = w.first[frame + 1];
    Floats<V> sum;
    if (w.uniform) {
        float total = 0;
        for (int64_t i = begin; i < end; ++i) total += weights[w.position[i] * w.weight_stride];
#pragma unroll 2
        for (int64_t i = begin; i < end; ++i)
            add(sum, weights[w.position[i] * w.weight_stride] / total, guided<T, V>(w, data, i));
        return sum;
    }
    Floats<V> total;
    for (int64_t i = begin; i < end; ++i) {
        const float* omega = weights + w.position[i] * w.weight_stride;
        const Floats<V> v = guided<T, V>(w, data, i);
#pragma unroll
        for (int j = 0; j < V; ++j) {
            const float o = omega[j * w.pixel_stride];
            total.at[j] += o;
            sum.at[j] += o * v.at[j];
        }
    }
#pragma unroll
    for (int j = 0; j < V; ++j) sum.at[j] /= total.at[j];
    return sum;
}

}  // namespace vidsmooth::cuda
