// How a kernel walks over the pixels of several videos at once.
#pragma once

#include <stdint.h>

#include "cpu/kernels.h"

namespace vidsmooth {

constexpr int kMaxOperands = 8;
// Elements of a frame handled together, at most: a 64 x 64 latent. Kernels that keep tiles of neighbouring
// frames take smaller ones, so that three of fp32 fit the L1 cache.
constexpr int64_t kTile = 4096;
constexpr int64_t kSmallTile = 2048;

// The axes B, C, H, W with neighbours merged wherever every operand allows it; frames are walked separately.
struct Grid {
    int64_t frames;
    int64_t size[4];                  // the last axis is the row that is vectorised
    int64_t stride[kMaxOperands][4];  // per operand
    int operands = 0;

    // Nothing inline here: these files are compiled for the base instruction set only.
    explicit Grid(const int64_t* video_size);              // B, C, F, H, W
    void add(int64_t b, int64_t c, int64_t h, int64_t w);  // strides of the next operand
    void add(const Operand& video);
    void add_output();  // contiguous
    void merge();       // after the last operand
};

// A unit of work: one tile of one row, over a range of frames.
struct Unit {
    int64_t offset[kMaxOperands];  // of the tile's first element, per operand
    int64_t length;                // elements of the tile
    int64_t first, last;           // frames [first, last)
};

struct Units {
    const Grid& grid;
    int64_t tile, tiles, segments, count;
    int threads;

    // Cuts the grid so that `threads` threads stay busy; fewer threads when the whole is too small to share.
    Units(const Grid& grid, int threads, int64_t largest_tile);
    Unit operator[](int64_t index) const;
};

}  // namespace vidsmooth
