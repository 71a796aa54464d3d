// How threads share out several videos: each takes a pack of neighbouring pixels through a range of frames.
#pragma once

#include "cpu/layout.h"
#include "cuda/elements.h"

namespace vidsmooth::cuda {

constexpr int kThreads = 256;
// Threads to fill a processor with. Fewer, longer walks read fewer frames twice (the neighbours of a range's
// ends).
constexpr int kThreadsPerProcessor = 2048;

struct Walk {
    int64_t outer[3], packs;   // merged B, C, H; packs along a row
    int64_t frames, segments;  // ranges of frames
    int64_t units;             // threads that have work
    int64_t stride[kMaxOperands][4];
    bool packed;  // 16-byte packs; else single elements

    int64_t blocks() const { return (units + kThreads - 1) / kThreads; }
};

struct Place {
    int64_t offset[kMaxOperands];
    int64_t first, last;  // frames
};

inline bool multiple(int64_t value, int64_t of) {
    return value % of == 0;
}

// A video that a pack of `lanes` elements may be read from at every step of the walk.
inline bool packable(const void* data, int64_t frame_stride, int64_t lanes, int64_t element) {
    return multiple(reinterpret_cast<uintptr_t>(data), lanes * element) && multiple(frame_stride, lanes);
}

// grid: merged. loose: bits of the operands that are absent or read element by element. packs: whether all
// others are packable in their frames.
inline Walk plan(const Grid& grid, int loose, bool packs, int lanes, int processors) {
    Walk w;
    packs = packs && multiple(grid.size[3], lanes);
    for (int i = 0; i < grid.operands; ++i) {
        for (int axis = 0; axis < 4; ++axis) w.stride[i][axis] = grid.stride[i][axis];
        if (loose >> i & 1) continue;
        packs = packs && grid.stride[i][3] == 1;
        for (int axis = 0; axis < 3; ++axis) packs = packs && multiple(grid.stride[i][axis], lanes);
    }
    w.packed = packs;
    const int64_t pack = packs ? lanes : 1;
    for (int axis = 0; axis < 3; ++axis) w.outer[axis] = grid.size[axis];
    w.packs = grid.size[3] / pack;
    for (int i = 0; i < grid.operands; ++i) w.stride[i][3] *= pack;
    w.frames = grid.frames;
    const int64_t pixels = w.outer[0] * w.outer[1] * w.outer[2] * w.packs;
    const int64_t length = pixels * w.frames / (int64_t(processors) * kThreadsPerProcessor);  // of a range
    w.segments = length <= 1 ? w.frames : (w.frames + length - 1) / length;
    w.units = pixels * w.segments;
    return w;
}

template <int Operands>
__device__ inline Place place(const Walk& w, uint32_t unit) {
    // In 32 bits: a division in 64 is a call that spills registers, and launch() refuses more threads.
    const uint32_t packs = w.packs, segments = w.segments, rows = w.outer[2], planes = w.outer[1],
                   frames = w.frames;
    const uint32_t pack = unit % packs, segment = unit / packs % segments, outer = unit / packs / segments;
    const int64_t at[3] = {outer / rows / planes, outer / rows % planes, outer % rows};
    Place p;
#pragma unroll
    for (int i = 0; i < Operands; ++i) {
        const int64_t* s = w.stride[i];
        p.offset[i] = at[0] * s[0] + at[1] * s[1] + at[2] * s[2] + pack * s[3];
    }
    const uint32_t length = frames / segments, longer = frames % segments;
    p.first = int64_t(segment) * length + (segment < longer ? segment : longer);
    p.last = p.first + length + (segment < longer);
    return p;
}

__device__ inline uint32_t this_thread() {
    return blockIdx.x * kThreads + threadIdx.x;
}

// out_n = s_n + before d_{n-1} + after d_{n+1} for the frames [first, last), each input read once.
//
// source(m, d, kept): sets d of input frame m, in [0, frames), and what sink needs of it later.
// taps(n, before, after): the factors at frame n; a neighbour that does not exist is not read.
// sink(n, kept, change): change = before d_{n-1} + after d_{n+1}.
template <class Kept, int V, class Source, class Taps, class Sink>
__device__ inline void march(int64_t first, int64_t last, int64_t frames, bool loop, const Source& source,
                             const Taps& taps, const Sink& sink) {
    Floats<V> previous, own, next;
    Kept kept, ahead;
    if (loop || first > 0) source(first > 0 ? first - 1 : frames - 1, previous, kept);
    source(first, own, kept);
    for (int64_t n = first; n < last; ++n) {
        const int64_t m = n + 1 < frames ? n + 1 : 0;
        if (loop || n + 1 < frames) source(m, next, ahead);
        float before, after;
        taps(n, before, after);
        Floats<V> change;
        if (before != 0) add(change, before, previous);  // so that infinity beside an end stays there
        if (after != 0) add(change, after, next);
        sink(n, kept, change);
        previous = own;
        own = next;
        kept = ahead;
    }
}

}  // namespace vidsmooth::cuda
