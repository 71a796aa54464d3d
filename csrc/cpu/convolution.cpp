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
#include "cpu/attention_tiles.h"
#include "cpu/numbers.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace vidsmooth::VIDSMOOTH_ISA {
namespace {

using Args = ConvolutionArgs;

constexpr int kTile = 4, kPoints = 6, kProducts = kPoints * kPoints;
constexpr int kRows = 6,
              kVectors = kWidth == 16 ? 4 : 2;  // tiles, vectors of output channels in the registers
constexpr int64_t kTiles = 24;                  // that a thread transforms at once
constexpr int64_t kWeights = 6 << 20;           // floats of transformed weights, about: 24 MB

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

// Its inputs, transformed: out + p * step for each of the 36 products p, a row of in_channels floats.
template <class T>
void transform_input(const Args& a, const Tile& tile, float* out, int64_t step) {
    const int64_t top = tile.top - 1, left = tile.left - 1;
    const T* from = static_cast<const T*>(a.x) + tile.image * a.stride[0];
    for (int64_t c = 0; c < a.in_channels; c += kWidth) {
        vfloat columns[kProducts], points[kPoints];  // columns: (point, column)
        for (int j = 0; j < kPoints; ++j) {
            vfloat d[kPoints] = {};
            if (left + j >= 0 && left + j < a.width) {
                for (int i = 0; i < kPoints; ++i)
                    if (top + i >= 0 && top + i < a.height)
                        d[i] = load(from + (top + i) * a.stride[1] + (left + j) * a.stride[2] + c);
            }
            to_points(d, columns + j, kPoints);
        }
        for (int i = 0; i < kPoints; ++i) {
            to_points(columns + i * kPoints, points, 1);
            for (int j = 0; j < kPoints; ++j) store(out + (i * kPoints + j) * step + c, points[j]);
        }
    }
}

// The weights of kWidth of a block's `width` output channels, transformed, of each input channel c:
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

// out (kRows, M kWidth) = x (kRows, in) times u (in, M kWidth), all dense
template <int M>
ALWAYS_INLINE void product(const float* x, const float* u, int64_t in, float* out) {
    vfloat sum[kRows][M] = {};
    for (int64_t c = 0; c < in; ++c) {
        vfloat row[M];
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) row[m] = load(u + (c * M + m) * kWidth);
#pragma GCC unroll 6
        for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) sum[i][m] += row[m] * x[i * in + c];
    }
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) store(out + (i * M + m) * kWidth, sum[i][m]);
}

template <int M>
void product_of_tiles(const float* x, const float* u, int64_t in, int64_t tiles, float* out) {
    for (int64_t i = 0; i < tiles; i += kRows) product<M>(x + i * in, u, in, out + i * M * kWidth);
}

struct Blocks {  // Output channels are taken in blocks of at most kVectors vectors, about equally wide.
    int64_t width;

    explicit Blocks(int64_t channels) {
        const int64_t vectors = channels / kWidth;
        width = parts(vectors, parts(vectors, kVectors)) * kWidth;
    }
    int64_t end(int64_t begin, int64_t channels) const { return least(begin + width, channels); }
};

// Output channels [begin, end) of some tiles. weights: of every block (36, in_channels, its width), with gaps
template <class T>
void convolve(const Args& a, int64_t first, int64_t count, int64_t begin, int64_t end, const float* weights) {
    const Blocks blocks(a.out_channels);
    const int64_t in = a.in_channels, tiles = parts(count, kRows) * kRows;
    const int64_t x_step = tiles * in + kGap, step = tiles * blocks.width + kGap;
    float* const x = scratch.reserve(kProducts * (x_step + step));  // (36, tiles, in), with gaps
    float* const products = x + kProducts * x_step;  // (36, tiles, width of the block), with gaps
    for (int64_t i = 0; i < count; ++i) transform_input<T>(a, Tile(a, first + i), x + i * in, x_step);
    for (int64_t channel = begin; channel < end;) {
        const int64_t width = blocks.end(channel, end) - channel;
        for (int64_t p = 0; p < kProducts; ++p, weights += in * width + kGap) {
            const float* row = x + p * x_step;
            float* out = products + p * step;
            switch (width / kWidth) {
                case 1:
                    product_of_tiles<1>(row, weights, in, tiles, out);
                    break;
                case 2:
                    product_of_tiles<2>(row, weights, in, tiles, out);
                    break;
                case 3:
                    product_of_tiles<least(3, kVectors)>(row, weights, in, tiles, out);
                    break;
                default:
                    product_of_tiles<kVectors>(row, weights, in, tiles, out);
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
    const Blocks blocks(a.out_channels);
    const int64_t tiles = a.images * parts(a.height, kTile) * parts(a.width, kTile);
    const int64_t share = parts(tiles, a.threads), most_tiles = parts(share, parts(share, kTiles));
    const int64_t count = parts(most_tiles, kRows) * kRows;
    const int64_t block_floats = kProducts * (a.in_channels * blocks.width + kGap);  // of a full one
    const int64_t at_once = most(1, kWeights / block_floats) * blocks.width;         // output channels
    float* const weights =
        weights_scratch.reserve(parts(least(at_once, a.out_channels), blocks.width) * block_floats);
    for (int64_t begin = 0; begin < a.out_channels; begin += at_once) {
        const int64_t end = least(begin + at_once, a.out_channels);
        parallel_for(a.threads, (end - begin) / kWidth, [&](int64_t i) {
            const int64_t channel = i * kWidth, block = channel / blocks.width;
            const int64_t width = blocks.end(block * blocks.width, end - begin) - block * blocks.width;
            float* to = weights + block * block_floats + channel % blocks.width;
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
