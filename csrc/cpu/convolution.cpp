// 3x3 convolutions of stride 1 by Winograd's minimal filtering F(4x4, 3x3): 36 products for 4 x 4 pixels
// instead of 144. Maps are cut into tiles of 4 x 4 pixels; a tile's 6 x 6 inputs d and the 3 x 3 weights g
// give
//     A^T [(G g G^T) * (B^T d B)] A,
// * element by element: summed over input channels, 36 matrix products of (tiles, in) and (in, out).
//
// The points of interpolation are 0, +-3/4, +-3/2 and infinity. In fp32, at 256 channels, the result's
// rounding error is 1e-6 of its deviation (root mean square), half of what the usual 0, +-1, +-2 give; the
// largest is two to four times that of oneDNN's sum. The transforms of p and -p share their even and odd
// parts.
#include "cpu/parallel.h"
#include "cpu/product.h"
#include "cpu/scratch.h"

namespace vidsmooth::VIDSMOOTH_ISA {
namespace {

using Args = ConvolutionArgs;

constexpr int kTile = 4, kPoints = 6, kProducts = kPoints * kPoints;
constexpr int64_t kTiles = 24;         // that a thread transforms at once
constexpr int64_t kWeights = 6 << 20;  // floats of transformed weights, about: 24 MB

// What lies between the matrices of two products: without it all 36 would begin in the same set of the L1
// cache.
constexpr int64_t kGap = 16;

constexpr float kA = 0.75f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB;  // the points and squares, exact

thread_local Scratch scratch, weights_scratch;

// B^T d, along one direction of a tile
ALWAYS_INLINE void to_points(const vfloat* d, vfloat* out, int step) {
    const vfloat even_a = d[4] - kB2 * d[2], odd_a = kA * (d[3] - kB2 * d[1]);
    const vfloat even_b = d[4] - kA2 * d[2], odd_b = kB * (d[3] - kA2 * d[1]);
    out[0] = d[4] - (kA2 + kB2) * d[2] + (kA2 * kB2) * d[0];
    out[step] = even_a + odd_a;
    out[2 * step] = even_a - odd_a;
    out[3 * step] = even_b + odd_b;
    out[4 * step] = even_b - odd_b;
    out[5 * step] = d[5] - (kA2 + kB2) * d[3] + (kA2 * kB2) * d[1];
}

// G g
ALWAYS_INLINE void weight_to_points(vfloat g0, vfloat g1, vfloat g2, vfloat* out, int step) {
    constexpr float a = 1 / (2 * kA2 * (kA2 - kB2)), b = 1 / (2 * kB2 * (kB2 - kA2));
    const vfloat even_a = a * (g0 + kA2 * g2), odd_a = (a * kA) * g1;
    const vfloat even_b = b * (g0 + kB2 * g2), odd_b = (b * kB) * g1;
    out[0] = g0 * (1 / (kA2 * kB2));
    out[step] = even_a + odd_a;
    out[2 * step] = even_a - odd_a;
    out[3 * step] = even_b + odd_b;
    out[4 * step] = even_b - odd_b;
    out[5 * step] = g2;
}

// A^T m
ALWAYS_INLINE void from_points(const vfloat* m, vfloat* out) {
    const vfloat sum_a = m[1] + m[2], difference_a = m[1] - m[2];
    const vfloat sum_b = m[3] + m[4], difference_b = m[3] - m[4];
    out[0] = m[0] + sum_a + sum_b;
    out[1] = kA * difference_a + kB * difference_b;
    out[2] = kA2 * sum_a + kB2 * sum_b;
    out[3] = (kA2 * kA) * difference_a + (kB2 * kB) * difference_b + m[5];
}

struct Tile {  // of all images, in order
    int64_t image, top, left;

    Tile(const Args& a, int64_t number) {
        const int64_t across = parts(a.width, kTile), of_image = across * parts(a.height, kTile);
        image = number / of_image;
        top = number % of_image / across * kTile;
        left = number % of_image % across * kTile;
    }
};

// Its inputs, transformed: out + p * step for each of the 36 products p, a row of in_channels floats. zeros:
// as many, for pixels outside the image.
template <class T>
void transform_input(const Args& a, const Tile& tile, const T* zeros, float* out, int64_t step) {
    const T* pixel[kProducts];
    for (int i = 0; i < kPoints; ++i)
        for (int j = 0; j < kPoints; ++j) {
            const int64_t y = tile.top - 1 + i, x = tile.left - 1 + j;
            const bool inside = y >= 0 && y < a.height && x >= 0 && x < a.width;
            const int64_t at = tile.image * a.stride[0] + y * a.stride[1] + x * a.stride[2];
            pixel[i * kPoints + j] = inside ? static_cast<const T*>(a.x) + at : zeros;
        }
    for (int64_t c = 0; c < a.in_channels; c += kWidth) {
        vfloat columns[kProducts], points[kPoints];  // columns: (point, column)
#pragma GCC unroll 6
        for (int j = 0; j < kPoints; ++j) {
            vfloat d[kPoints];
#pragma GCC unroll 6
            for (int i = 0; i < kPoints; ++i) {
                const T* from = pixel[i * kPoints + j] + c;
                d[i] = load(from);
                if (j >= 2)
                    __builtin_prefetch(from +
                                       kTile * a.stride[2]);  // the next tile's, if it is none of zeros
            }
            to_points(d, columns + j, kPoints);
        }
#pragma GCC unroll 6
        for (int i = 0; i < kPoints; ++i) {
            to_points(columns + i * kPoints, points, 1);
#pragma GCC unroll 6
            for (int j = 0; j < kPoints; ++j) store(out + (i * kPoints + j) * step + c, points[j]);
        }
    }
}

// The weights of kWidth of a panel's `width` output channels, transformed, of each input channel c:
// out + p * (in_channels * width + kGap) + c * width.
template <class T>
void transform_weights(const Args& a, int64_t channel, float* out, int64_t width) {
    const int64_t in = a.in_channels, tap = in * kWidth, step = in * width + kGap;
    const T* weight = static_cast<const T*>(a.weight) + channel * 9 * in;
    float* const g = scratch.reserve(10 * tap);  // (tap, input channel, kWidth), and kWidth rows of one tap
    float* const rows = g + 9 * tap;
    for (int t = 0; t < 9; ++t) {
        for (int i = 0; i < kWidth; ++i) widen_row(weight + (i * 9 + t) * in, in, rows + i * in);
        transpose<kWidth>(rows, in, in, g + t * tap);
    }
    for (int64_t c = 0; c < in; ++c) {
        vfloat columns[kPoints * 3], points[kPoints];  // columns: (point, column)
        for (int j = 0; j < 3; ++j) {
            const float* column = g + j * tap + c * kWidth;
            weight_to_points(load(column), load(column + 3 * tap), load(column + 6 * tap), columns + j, 3);
        }
        for (int i = 0; i < kPoints; ++i) {
            const vfloat* row = columns + i * 3;
            weight_to_points(row[0], row[1], row[2], points, 1);
            for (int j = 0; j < kPoints; ++j) store(out + (i * kPoints + j) * step + c * width, points[j]);
        }
    }
}

// The 4 x 4 pixels of kWidth channels of a tile, from its products at in + p * step.
template <class T>
void transform_output(const Args& a, const Tile& tile, int64_t channel, const float* in, int64_t step) {
    T* out = static_cast<T*>(a.out) + tile.image * a.height * a.width * a.out_channels + channel;
    const vfloat bias = load(a.bias + channel);
    vfloat rows[kPoints * kTile];  // (point, pixel)
    for (int i = 0; i < kPoints; ++i) {
        vfloat m[kPoints];
        for (int j = 0; j < kPoints; ++j) m[j] = load(in + (i * kPoints + j) * step);
        from_points(m, rows + i * kTile);
    }
    for (int j = 0; j < kTile && tile.left + j < a.width; ++j) {
        vfloat m[kPoints], pixels[kTile];
        for (int i = 0; i < kPoints; ++i) m[i] = rows[i * kTile + j];
        from_points(m, pixels);
        for (int i = 0; i < kTile && tile.top + i < a.height; ++i)
            store(out + ((tile.top + i) * a.width + tile.left + j) * a.out_channels, pixels[i] + bias);
    }
}

// Output channels [begin, end) of some tiles. weights: of every panel (36, in_channels, its width), with gaps
template <class T>
void convolve(const Args& a, int64_t first, int64_t count, int64_t begin, int64_t end, const float* weights) {
    const Panels panels(a.out_channels);
    const int64_t in = a.in_channels, tiles = parts(count, kRows) * kRows;
    const int64_t x_step = tiles * in + kGap, step = tiles * panels.width + kGap;
    float* const x = scratch.reserve(kProducts * (x_step + step) + in);  // (36, tiles, in), with gaps
    float* const products = x + kProducts * x_step;  // (36, tiles, width of the panel), with gaps
    float* const zeros = products + kProducts * step;
    __builtin_memset(zeros, 0, in * sizeof(float));
    for (int64_t i = 0; i < count; ++i) {
        const T* outside = reinterpret_cast<const T*>(zeros);
        transform_input<T>(a, Tile(a, first + i), outside, x + i * in, x_step);
    }
    for (int64_t channel = begin; channel < end;) {
        const int64_t width = panels.end(channel, end) - channel;
        for (int64_t p = 0; p < kProducts; ++p, weights += in * width + kGap) {
            float* out = products + p * step;
            for (int64_t i = 0; i < tiles; i += kRows, out += kRows * width) {
                const float* row = x + p * x_step + i * in;
                product<Single>(width / kWidth, row, in, weights, in, [=](int r, const vfloat* sums, int n) {
                    for (int m = 0; m < n; ++m) store(out + (r * n + m) * kWidth, sums[m]);
                });
            }
        }
        for (int64_t i = 0; i < count; ++i)
            for (int64_t c = 0; c < width; c += kWidth)
                transform_output<T>(a, Tile(a, first + i), channel + c, products + i * width + c, step);
        channel += width;
    }
}

template <class T>
void run(const Args& a) {
    const Panels panels(a.out_channels);
    const int64_t tiles = a.images * parts(a.height, kTile) * parts(a.width, kTile);
    const int64_t share = parts(tiles, a.threads), most_tiles = parts(share, parts(share, kTiles));
    const int64_t count = parts(most_tiles, kRows) * kRows;
    const int64_t panel_floats = kProducts * (a.in_channels * panels.width + kGap);  // of a full one
    const int64_t at_once = most(1, kWeights / panel_floats) * panels.width;         // output channels
    float* const weights =
        weights_scratch.reserve(parts(least(at_once, a.out_channels), panels.width) * panel_floats);
    for (int64_t begin = 0; begin < a.out_channels; begin += at_once) {
        const int64_t end = least(begin + at_once, a.out_channels);
        parallel_for(a.threads, (end - begin) / kWidth, [&](int64_t i) {
            const int64_t channel = i * kWidth, panel = channel / panels.width;
            const int64_t width = panels.end(panel * panels.width, end - begin) - panel * panels.width;
            float* to = weights + panel * panel_floats + channel % panels.width;
            transform_weights<T>(a, begin + channel, to, width);
        });
        parallel_for(a.threads, parts(tiles, count), [&](int64_t i) {
            convolve<T>(a, i * count, least(count, tiles - i * count), begin, end, weights);
        });
    }
}

}  // namespace

void convolution(const ConvolutionArgs& a) {
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
