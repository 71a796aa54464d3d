// The weighted mean of the windows that contain a frame, summed over guidance branches, one tile at a time.
#pragma once

#include "cpu/rows.h"

namespace vidsmooth::VIDSMOOTH_ISA {

constexpr int kStreams = 8;  // rows read side by side; more are added in further passes over the tile

template <class T>
class Merge {
  public:
    // Operands `stack` and `stack + 1` of the grid are the windows and their weights.
    static void add_to(Grid& grid, const WindowStack& w) {
        grid.add(w.stride[0], w.stride[2], w.stride[4], w.stride[5]);
        grid.add(0, w.weight_stride[0], w.weight_stride[2], w.weight_stride[3]);
    }

    Merge(const WindowStack& w, const Grid& grid, const Unit& u, int operand)
        : w_(w),
          data_(static_cast<const T*>(w.data) + u.offset[operand]),
          weights_(w.weights + u.offset[operand + 1]),
          step_(grid.stride[operand][3]),
          weight_step_(grid.stride[operand + 1][3]),
          length_(u.length) {}

    // out[i] = finish(merged value, at) over the tile of frame n; see fill_row.
    template <class Mode, class Out, class Finish>
    void frame(int64_t n, Mode stream, Out* out, const Finish& finish) {
        weight_step_ == 0 ? uniform(n, stream, out, finish) : pixelwise(n, stream, out, finish);
    }

  private:
    const T* row(int64_t branch, int64_t i) const {
        return data_ + branch * w_.branch_stride + w_.window[i] * w_.stride[1] +
               w_.position[i] * w_.stride[3];
    }

    const float* weight(int64_t i) const { return weights_ + w_.position[i] * w_.weight_stride[1]; }

    template <class V>
    const V* gather(const V* row, int64_t step, V* buffer) const {
        if (step == 1) return row;
        for (int64_t i = 0; i < length_; ++i) buffer[i] = row[i * step];
        return buffer;
    }

    // One weight per window and frame, so each row has one coefficient.
    template <class Mode, class Out, class Finish>
    void uniform(int64_t n, Mode stream, Out* out, const Finish& finish) {
        const int64_t first = w_.first[n], last = w_.first[n + 1];
        float total = 0;
        for (int64_t i = first; i < last; ++i) total += *weight(i);

        const T* rows[kStreams];
        float factors[kStreams];
        int count = 0;
        bool partial = false;  // sum_ holds what earlier passes added up
        for (int64_t i = first; i < last; ++i) {
            for (int64_t g = 0; g < w_.branches; ++g) {
                if (count == kStreams) {
                    add(rows, factors, count, Cached{}, sum_,
                        [&](vfloat sum, auto at) { return partial ? sum + at(sum_) : sum; });
                    partial = true;
                    count = 0;
                }
                rows[count] = gather(row(g, i), step_, gathered_[count]);
                factors[count++] = w_.branch_weights[g] * (*weight(i) / total);
            }
        }
        if (partial)
            add(rows, factors, count, stream, out,
                [&](vfloat sum, auto at) { return finish(sum + at(sum_), at); });
        else
            add(rows, factors, count, stream, out, finish);
    }

    // The count stays a run-time number: memory is slower than the loop, and eight unrolled ones compile
    // slowly.
    template <class Mode, class Out, class Finish>
    void add(const T* const* rows, const float* factors, int count, Mode stream, Out* out,
             const Finish& finish) {
        fill_row(stream, out, length_, [&](auto at) {
            vfloat sum = factors[0] * at(rows[0]);
            for (int i = 1; i < count; ++i) sum += factors[i] * at(rows[i]);
            return finish(sum, at);
        });
    }

    // A weight per pixel: numerator and denominator side by side.
    template <class Mode, class Out, class Finish>
    void pixelwise(int64_t n, Mode stream, Out* out, const Finish& finish) {
        for (int64_t i = w_.first[n]; i < w_.first[n + 1]; ++i) {
            const float* weight = gather(this->weight(i), weight_step_, gathered_weight_);
            const bool begin = i == w_.first[n];
            fill_row(Cached{}, total_, length_,
                     [&](auto at) { return begin ? at(weight) : at(total_) + at(weight); });
            for (int64_t g = 0; g < w_.branches; ++g) {
                const T* values = gather(row(g, i), step_, gathered_[0]);
                const float factor = w_.branch_weights[g];
                fill_row(Cached{}, sum_, length_, [&](auto at) {
                    const vfloat term = factor * at(weight) * at(values);
                    return begin && g == 0 ? term : at(sum_) + term;
                });
            }
        }
        fill_row(stream, out, length_, [&](auto at) { return finish(at(sum_) / at(total_), at); });
    }

    const WindowStack& w_;
    const T* data_;
    const float* weights_;
    int64_t step_, weight_step_, length_;
    float sum_[kTile], total_[kTile], gathered_weight_[kTile];
    T gathered_[kStreams][kTile];
};

}  // namespace vidsmooth::VIDSMOOTH_ISA
