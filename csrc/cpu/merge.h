// The weighted mean of the windows that contain a frame, summed over guidance branches, one tile at a time.
#pragma once

#include "cpu/rows.h"

namespace vidsmooth::VIDSMOOTH_ISA {

constexpr int kStreams = 8;  // rows read side by side; further ones are first added up in passes of their own

template <class T>
class Merge {
  public:
    // Operands `operand` and `operand + 1` of the grid are the windows and their weights.
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

    // After prepare(n), value(lanes) is the merged row of frame n.
    void prepare(int64_t n) {
        count_ = 0;
        partial_ = false;
        weight_step_ == 0 ? uniform(n) : pixelwise(n);
    }

    template <class L>
    vfloat value(L lanes) const {
        vfloat sum = partial_ ? lanes.load(sum_) : vfloat{};
        for (int i = 0; i < count_; ++i) {  // memory is slower than this loop with its run-time count
            lanes.prefetch(next_[i]);
            sum += factors_[i] * lanes.load(rows_[i]);
        }
        return sum;
    }

  private:
    const float* weight(int64_t i) const { return weights_ + w_.position[i] * w_.weight_stride[1]; }

    template <class V>
    const V* gather(const V* row, int64_t step, V* buffer) const {
        if (step == 1) return row;
        for (int64_t i = 0; i < length_; ++i) buffer[i] = row[i * step];
        return buffer;
    }

    void add(int64_t branch, int64_t i, float factor) {
        const T* row =
            data_ + branch * w_.branch_stride + w_.window[i] * w_.stride[1] + w_.position[i] * w_.stride[3];
        const bool ends = step_ != 1 || w_.position[i] + 1 == w_.length;
        next_[count_] = ends ? row : row + w_.stride[3];  // the window's next frame
        rows_[count_] = gather(row, step_, gathered_[count_]);
        factors_[count_++] = factor;
    }

    void add_up() {
        along_row<false>(length_, [this](auto lanes) { lanes.store(sum_, value(lanes)); });
        partial_ = true;
        count_ = 0;
    }

    // One weight per window and frame, so each row has one factor.
    void uniform(int64_t n) {
        float total = 0;
        for (int64_t i = w_.first[n]; i < w_.first[n + 1]; ++i) total += *weight(i);
        for (int64_t i = w_.first[n]; i < w_.first[n + 1]; ++i) {
            for (int64_t g = 0; g < w_.branches; ++g) {
                if (count_ == kStreams) add_up();
                add(g, i, w_.branch_weights[g] * (*weight(i) / total));
            }
        }
    }

    // A weight per pixel: the whole quotient is made here.
    void pixelwise(int64_t n) {
        for (int64_t i = 0; i < length_; ++i) total_[i] = quotient_[i] = 0;
        for (int64_t i = w_.first[n]; i < w_.first[n + 1]; ++i) {
            const float* weight = gather(this->weight(i), weight_step_, gathered_weight_);
            partial_ = false;
            for (int64_t g = 0; g < w_.branches; ++g) {
                if (count_ == kStreams) add_up();
                add(g, i, w_.branch_weights[g]);
            }
            along_row<false>(length_, [=](auto lanes) {
                const vfloat omega = lanes.load(weight);
                lanes.store(total_, lanes.load(total_) + omega);
                lanes.store(quotient_, lanes.load(quotient_) + omega * value(lanes));
            });
            count_ = 0;
        }
        along_row<false>(length_,
                         [=](auto lanes) { lanes.store(sum_, lanes.load(quotient_) / lanes.load(total_)); });
        partial_ = true;
    }

    const WindowStack& w_;
    const T* data_;
    const float* weights_;
    int64_t step_, weight_step_, length_;
    int count_ = 0;
    bool partial_ = false;  // sum_ takes part in value()
    const T *rows_[kStreams], *next_[kStreams];
    float factors_[kStreams];
    float sum_[kTile], total_[kTile], quotient_[kTile], gathered_weight_[kTile];
    T gathered_[kStreams][kTile];
};

}  // namespace vidsmooth::VIDSMOOTH_ISA
