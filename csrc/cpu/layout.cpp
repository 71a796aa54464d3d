#include "cpu/layout.h"

#include <algorithm>

namespace vidsmooth {

Grid::Grid(const int64_t* s) : frames(s[2]), size{s[0], s[1], s[3], s[4]} {}

void Grid::add(const Operand& o) {
    add(o.stride[0], o.stride[1], o.stride[3], o.stride[4]);
}

void Grid::add_output() {
    const int64_t frame = size[2] * size[3];
    add(size[1] * frames * frame, frames * frame, size[3], 1);
}

void Grid::add(int64_t b, int64_t c, int64_t h, int64_t w) {
    const int64_t strides[4] = {b, c, h, w};
    std::copy(strides, strides + 4, stride[operands++]);
}

void Grid::merge() {
    int64_t merged[4] = {1, 1, 1, 1}, strides[kMaxOperands][4] = {};
    int at = 4;  // the outermost merged axis so far; axis 3 is the row
    for (int axis = 3; axis >= 0; --axis) {
        if (axis == 1 && at == 4)
            --at;  // one pixel: the row stays of length 1, outputs are contiguous in H, W only
        if (size[axis] == 1) continue;
        bool joins = at < 4;
        for (int i = 0; joins && i < operands; ++i) joins = stride[i][axis] == strides[i][at] * merged[at];
        if (joins) {
            merged[at] *= size[axis];
            continue;
        }
        merged[--at] = size[axis];
        for (int i = 0; i < operands; ++i) strides[i][at] = stride[i][axis];
    }
    std::copy(merged, merged + 4, size);
    for (int i = 0; i < operands; ++i) std::copy(strides[i], strides[i] + 4, stride[i]);
}

Units::Units(const Grid& grid, int threads, int64_t largest_tile) : grid(grid) {
    const int64_t frames = grid.frames;
    const int64_t outer = grid.size[0] * grid.size[1] * grid.size[2];
    const int64_t row = grid.size[3];
    // Below about 32 Ki elements a thread is woken for less than it costs.
    const int64_t useful = std::max<int64_t>(1, outer * row * frames >> 15);
    this->threads = static_cast<int>(std::min<int64_t>(threads, useful));
    tile = std::min(row, largest_tile);
    tiles = (row + tile - 1) / tile;
    const int64_t wanted = this->threads == 1 ? 1 : 4 * this->threads;
    segments = std::max<int64_t>(1, std::min((wanted + outer * tiles - 1) / (outer * tiles), frames / 8));
    count = outer * tiles * segments;
}

Unit Units::operator[](int64_t index) const {
    Unit unit;
    const int64_t segment = index % segments, cell = index / segments;
    const int64_t part = cell % tiles, outer = cell / tiles;
    const int64_t at[3] = {outer / grid.size[2] / grid.size[1], outer / grid.size[2] % grid.size[1],
                           outer % grid.size[2]};
    unit.first = grid.frames * segment / segments;
    unit.last = grid.frames * (segment + 1) / segments;
    unit.length = std::min(tile, grid.size[3] - part * tile);
    for (int i = 0; i < grid.operands; ++i) {
        const int64_t* s = grid.stride[i];
        unit.offset[i] = at[0] * s[0] + at[1] * s[1] + at[2] * s[2] + part * tile * s[3];
    }
    return unit;
}

}  // namespace vidsmooth
