// Temporal attention: softmax(q k^T scale) v over the frames of every (batch entry, pixel, head), or over
// overlapping windows of them whose results are averaged by weights.
//
// A warp takes one pixel and head and 16 query frames; everything it needs fits its registers. q, k and v go
// from memory to the matrix units without shared memory or shuffles: each lane reads 16 bytes of a row, and
// the columns of a head are dealt to the units' K (for scores) and N (for values) in the order in which lanes
// hold them, which a product does not notice. The four lanes of a row thus read 64 neighbouring bytes of q
// and k, eight lanes 128 bytes of v, and results leave in the same way. Half precision pads its heads to what
// the units take; they have time to spare: F frames ask for F/2 operations a byte, a tenth of what the units
// do while that byte arrives.
//
// fp32 is multiplied as two tf32 numbers each, in four products. A window's result is added to what earlier
// windows gave in the same registers, its probabilities multiplied by the window's share: no atomics, no
// second pass.
#include <math.h>

#include "cuda/warp.h"

namespace vidsmooth::cuda {
namespace {

constexpr int kWarps = 4;     // of a block: neighbouring heads, whose rows share sectors of memory
constexpr int kQueries = 16;  // of a warp

struct Params {
    const void* in[3];
    void* out;
    int64_t stride[3][2];
    int64_t pixels, heads, width, frames, tiles, items;  // tiles of 16 query frames
    float scale;
    const float* weights;  // (K); null: one window, every share 1
    int windows, window;
    int starts[kWindows];
};

// Of type T: how many a lane reads at once, and the tiles of both products.
template <class T>
struct Shape {
    static constexpr int lanes = 16 / sizeof(T);          // elements of a read
    static constexpr int columns = 8 * lanes;             // of v that 8 lanes read side by side
    static constexpr int keys = sizeof(T) == 2 ? 16 : 8;  // K of a product
};

template <class T>
struct Item {
    const T* in[3];
    T* out;
    int64_t first;  // query frame
};

// 16 bytes of a row from `column` on, zeros beyond the head.
template <class T, bool Packed>
__device__ inline Pack<T, Shape<T>::lanes> read(const T* row, int64_t column, int64_t width, bool exists) {
    constexpr int lanes = Shape<T>::lanes;
    Pack<T, lanes> pack = {};
    if (!exists) return pack;
    if constexpr (Packed) {
        if (column < width) pack = load<T, lanes, true>(row + column);  // other warps read it too
    } else {
#pragma unroll
        for (int i = 0; i < lanes; ++i)
            if (column + i < width) pack.at[i] = row[column + i];
    }
    return pack;
}

template <class T>
__device__ inline uint32_t pair_at(const Pack<T, 8>& pack, int i) {
    return uint32_t(pack.at[2 * i + 1].bits) << 16 | pack.at[2 * i].bits;
}

// c[n] += q k^T for 16 rows of q and 8 keys a tile n, over the columns that these packs hold.
template <class T>
__device__ inline void score(float (&c)[4], const Pack<T, 8>& q0, const Pack<T, 8>& q1, const Pack<T, 8>& k) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t a[4] = {pair_at(q0, i), pair_at(q1, i), pair_at(q0, i + 1), pair_at(q1, i + 1)};
        multiply(c, a, pair_at(k, i), pair_at(k, i + 1), T{});
    }
}
__device__ inline void score(float (&c)[4], const Pack<float, 4>& q0, const Pack<float, 4>& q1,
                             const Pack<float, 4>& k) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const Split a[4] = {split(q0.at[i]), split(q1.at[i]), split(q0.at[i + 1]), split(q1.at[i + 1])};
        multiply(c, a, split(k.at[i]), split(k.at[i + 1]));
    }
}

// o[j] += p v for the 16 (half precision) or 8 keys from tile n on. j: column j of every lane's pack.
template <class T, int Tiles, bool Packed, class Row>
__device__ inline void add_values(float (&o)[8][4], const float (&p)[Tiles][4], int n, int64_t column,
                                  int64_t width, const Row& row, T) {
    const int t = lane() % 4;
    Pack<T, 8> v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int key = 8 * n + 2 * t + i % 2 + i / 2 * 8;
        v[i] = read<T, Packed>(row(key), column, width, row(key) != nullptr);
    }
    const uint32_t a[4] = {pair<T>(p[n][0], p[n][1]), pair<T>(p[n][2], p[n][3]),
                           pair<T>(p[n + 1][0], p[n + 1][1]), pair<T>(p[n + 1][2], p[n + 1][3])};
#pragma unroll
    for (int j = 0; j < 8; ++j)
        multiply(o[j], a, uint32_t(v[1].at[j].bits) << 16 | v[0].at[j].bits,
                 uint32_t(v[3].at[j].bits) << 16 | v[2].at[j].bits, T{});
}
template <class T, int Tiles, bool Packed, class Row>
__device__ inline void add_values(float (&o)[4][4], const float (&p)[Tiles][4], int n, int64_t column,
                                  int64_t width, const Row& row, float) {
    const int t = lane() % 4;
    Pack<float, 4> v[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int key = 8 * n + 2 * t + i;
        v[i] = read<float, Packed>(row(key), column, width, row(key) != nullptr);
    }
    // K of this product: t stands for key 2t, t + 4 for key 2t + 1, which is how lanes hold the
    // probabilities.
    const Split a[4] = {split(p[n][0]), split(p[n][2]), split(p[n][1]), split(p[n][3])};
#pragma unroll
    for (int j = 0; j < 4; ++j) multiply(o[j], a, split(v[0].at[j]), split(v[1].at[j]));
}

// p: probabilities of this warp's queries over one window's keys, times the share of each query's row.
template <class T, int Tiles, bool Packed, class Row>
__device__ inline void probabilities(const Params& s, const Item<T>& item, const Row& key_row, float share0,
                                     float share1, float (&p)[Tiles][4]) {
    constexpr int lanes = Shape<T>::lanes;
    const int g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (int n = 0; n < Tiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) p[n][i] = 0;
    const T* q0 = item.in[0] + (item.first + g) * s.stride[0][0];
    const T* q1 = q0 + 8 * s.stride[0][0];
    const bool has0 = item.first + g < s.frames, has1 = item.first + g + 8 < s.frames;
    constexpr int unrolled = sizeof(T) == 2 ? 2 : 1;  // of fp32, two would spill registers
#pragma unroll unrolled
    for (int64_t begin = 0; begin < s.width; begin += 4 * lanes) {
        const int64_t column = begin + t * lanes;
        const auto a0 = read<T, Packed>(q0, column, s.width, has0),
                   a1 = read<T, Packed>(q1, column, s.width, has1);
#pragma unroll
        for (int n = 0; n < Tiles; ++n) {
            const T* row = key_row(1, 8 * n + g);
            score(p[n], a0, a1, read<T, Packed>(row, column, s.width, row != nullptr));
        }
    }
    float top0 = -INFINITY, top1 = -INFINITY;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const bool exists = 8 * n + 2 * t + i % 2 < s.window;
            p[n][i] = exists ? p[n][i] * s.scale : -INFINITY;
        }
        top0 = fmaxf(top0, fmaxf(p[n][0], p[n][1]));
        top1 = fmaxf(top1, fmaxf(p[n][2], p[n][3]));
    }
    top0 = row_max(top0), top1 = row_max(top1);
    float sum0 = 0, sum1 = 0;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) p[n][i] = exp2f((p[n][i] - (i < 2 ? top0 : top1)) * 1.44269504f);
        sum0 += p[n][0] + p[n][1];
        sum1 += p[n][2] + p[n][3];
    }
    const float factor0 = share0 / row_sum(sum0), factor1 = share1 / row_sum(sum1);
#pragma unroll
    for (int n = 0; n < Tiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) p[n][i] *= i < 2 ? factor0 : factor1;
}

// Columns [begin + half columns): this lane's two runs of each of its two rows.
template <class T, bool Packed>
__device__ inline void write(const Params& s, const Item<T>& item, int64_t begin,
                             const float (&o)[Shape<T>::lanes][4]) {
    constexpr int lanes = Shape<T>::lanes;
    const int g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int64_t frame = item.first + g + i / 2 * 8, column = begin + (2 * t + i % 2) * lanes;
        if (frame >= s.frames) continue;
        T* to = item.out + frame * s.pixels * s.heads * s.width + column;
        Floats<lanes> v;
#pragma unroll
        for (int j = 0; j < lanes; ++j) v.at[j] = o[j][i];
        if constexpr (Packed) {
            if (column < s.width) store<T, lanes>(to, v);
        } else {
#pragma unroll
            for (int j = 0; j < lanes; ++j)
                if (column + j < s.width) narrow(v.at[j], to[j]);
        }
    }
}

// Tiles: of 8 keys. For 8 of them a bound of one block leaves what one of two does, 255 registers; but with
// two, nvcc spills in fp32.
template <class T, int Tiles, bool Packed, bool Windowed>
__global__ void __launch_bounds__(32 * kWarps, Tiles == 2   ? 4
                                               : Tiles == 4 ? 3
                                               : Packed     ? 1
                                                            : 2) attend(const __grid_constant__ Params s) {
    constexpr int lanes = Shape<T>::lanes;
    // In 32 bits: a division in 64 is a call that spills registers, and launch() refuses more threads.
    const uint32_t index = blockIdx.x * kWarps + threadIdx.x / 32;
    if (index >= s.items) return;
    const uint32_t tiles = s.tiles, heads = s.heads, pixels = s.pixels;
    const uint32_t tile = index % tiles, head = index / tiles % heads, rest = index / tiles / heads;
    const int64_t pixel = rest % pixels, batch = rest / pixels;
    Item<T> item;
    item.first = int64_t(tile) * kQueries;
    for (int i = 0; i < 3; ++i)
        item.in[i] = static_cast<const T*>(s.in[i]) + batch * s.frames * s.stride[i][0] +
                     pixel * s.stride[i][1] + head * s.width;
    item.out = static_cast<T*>(s.out) + ((batch * s.frames * s.pixels + pixel) * s.heads + head) * s.width;
    const int g = lane() / 4;
    float p[Tiles][4], o[lanes][4];

    // Where in the window from `start` on a frame of the video stands; the window may run over the end of a
    // loop.
    const auto position = [&](int64_t frame, int start) {
        const int64_t after = frame - start;
        return after < 0 ? after + s.frames : after;
    };
    // Row of k (1) or v (2) for a key of the window; null beyond its end.
    const auto row_of = [&](int start) {
        return [&, start](int tensor, int key) -> const T* {
            if (key >= s.window) return nullptr;
            int64_t frame = start + key;
            frame -= frame >= s.frames ? s.frames : 0;
            return item.in[tensor] + frame * s.stride[tensor][0];
        };
    };
    const auto clear = [&] {
#pragma unroll
        for (int j = 0; j < lanes; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) o[j][i] = 0;
    };
    const auto add = [&](int64_t begin, const auto& row) {
#pragma unroll
        for (int n = 0; n < Tiles; n += Shape<T>::keys / 8)
            add_values<T, Tiles, Packed>(
                o, p, n, begin + g * lanes, s.width, [&](int key) { return row(2, key); }, T{});
    };

    if constexpr (!Windowed) {
        const auto row = row_of(0);
        probabilities<T, Tiles, Packed>(s, item, row, 1.f, 1.f, p);
#pragma unroll 1
        for (int64_t begin = 0; begin < s.width; begin += Shape<T>::columns) {
            clear();
            add(begin, row);
            write<T, Packed>(s, item, begin, o);
        }
    } else {
        float total0 = 0, total1 = 0;
        int low = s.windows, high = 0;  // windows that contain a query of this warp
        for (int n = 0; n < s.windows; ++n) {
            const int64_t at0 = position(item.first + g, s.starts[n]),
                          at1 = position(item.first + g + 8, s.starts[n]);
            const bool in0 = item.first + g < s.frames && at0 < s.window;
            const bool in1 = item.first + g + 8 < s.frames && at1 < s.window;
            if (in0) total0 += s.weights[at0];
            if (in1) total1 += s.weights[at1];
            if (in0 || in1) low = n < low ? n : low, high = n + 1;
        }
#pragma unroll 1
        for (int64_t begin = 0; begin < s.width; begin += Shape<T>::columns) {
            clear();
            for (int n = 0; n < s.windows; ++n) {
                if (!any(low <= n && n < high)) continue;
                const int64_t at0 = position(item.first + g, s.starts[n]),
                              at1 = position(item.first + g + 8, s.starts[n]);
                const bool in0 = item.first + g < s.frames && at0 < s.window;
                const bool in1 = item.first + g + 8 < s.frames && at1 < s.window;
                if (!any(in0 || in1)) continue;
                const auto row = row_of(s.starts[n]);
                // The scores are made again for every 64 or 32 columns of v: fewer registers, and k is in the
                // cache.
                probabilities<T, Tiles, Packed>(s, item, row, in0 ? s.weights[at0] / total0 : 0.f,
                                                in1 ? s.weights[at1] / total1 : 0.f, p);
                add(begin, row);
            }
            write<T, Packed>(s, item, begin, o);
        }
    }
}

template <class T, int Tiles, bool Packed>
void run(const Params& p, Stream stream) {
    const int64_t blocks = (p.items + kWarps - 1) / kWarps;
    if (p.weights)
        launch("temporal_attention", attend<T, Tiles, Packed, true>, blocks, 32 * kWarps, p, stream);
    else
        launch("temporal_attention", attend<T, Tiles, Packed, false>, blocks, 32 * kWarps, p, stream);
}

template <class T>
void run(const Params& p, bool packed, Stream stream) {
    if (!packed) return run<T, 8, false>(p, stream);  // rare: one variant is enough
    switch ((p.window + 15) / 16) {
        case 1:
            return run<T, 2, true>(p, stream);
        case 2:
            return run<T, 4, true>(p, stream);
        default:
            return run<T, 8, true>(p, stream);
    }
}

template <class T>
void run(const TemporalAttentionArgs& a, Stream stream) {
    constexpr int64_t lanes = Shape<T>::lanes;
    const OnDevice device(stream, "temporal_attention");
    Params p = {};
    bool packed = a.width % lanes == 0 && reinterpret_cast<uintptr_t>(a.out) % 16 == 0;
    for (int i = 0; i < 3; ++i) {
        p.in[i] = a.in[i];
        packed = packed && reinterpret_cast<uintptr_t>(a.in[i]) % 16 == 0;
        for (int axis = 0; axis < 2; ++axis) {
            p.stride[i][axis] = a.stride[i][axis];
            packed = packed && a.stride[i][axis] % lanes == 0;
        }
    }
    p.out = a.out;
    p.pixels = a.pixels, p.heads = a.heads, p.width = a.width, p.frames = a.frames;
    p.tiles = (a.frames + kQueries - 1) / kQueries;
    p.items = a.batch * a.pixels * a.heads * p.tiles;
    p.scale = a.scale;
    p.weights = a.factors;
    p.window = static_cast<int>(a.window);
    p.windows = static_cast<int>(a.windows);
    for (int n = 0; n < p.windows; ++n) p.starts[n] = static_cast<int>(a.starts[n]);
    run<T>(p, packed, stream);
}

}  // namespace

void temporal_attention(const TemporalAttentionArgs& a, Stream stream) {
    by_dtype(a.dtype, [&](auto element) { run<decltype(element)>(a, stream); });
}

}  // namespace vidsmooth::cuda
