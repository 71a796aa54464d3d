// One tile of one operand, frame by frame, always as contiguous memory.
#pragma once

#include "cpu/layout.h"
#include "cpu/simd.h"

namespace vidsmooth::VIDSMOOTH_ISA {

// Rows whose elements lie apart (channels_last, broadcast) are gathered once into a ring of three frames,
// which is what a kernel that looks at both neighbours needs.
template <class T>
class Rows {
  public:
    Rows(const void* data, int64_t offset, int64_t step, int64_t frame_stride, int64_t frames, int64_t length)
        : base_(static_cast<const T*>(data) + (data ? offset : 0)),
          step_(step),
          frame_stride_(frame_stride),
          frames_(frames),
          length_(length) {}

    // frame: in [-1, frames]; -1 is the last frame and `frames` the first.
    const T* operator[](int64_t frame) {
        const int64_t wrapped = frame < 0 ? frames_ - 1 : frame == frames_ ? 0 : frame;
        const T* row = base_ + wrapped * frame_stride_;
        if (step_ == 1) return row;
        const int slot = (frame + 3) % 3;  // three successive frames never share a slot
        if (held_[slot] != frame) {
            held_[slot] = frame;
            for (int64_t i = 0; i < length_; ++i) ring_[slot][i] = row[i * step_];
        }
        return ring_[slot];
    }

    // Where the row after `frame` lies, to prefetch; some readable row where that is of no use.
    const T* after(int64_t frame) const {
        const int64_t next = frame + 1 < frames_ ? frame + 1 : frames_ - 1;
        return base_ + (step_ == 1 ? next * frame_stride_ : 0);
    }

  private:
    const T* base_;
    int64_t step_, frame_stride_, frames_, length_;
    int64_t held_[3] = {-2, -2, -2};
    T ring_[3][kTile];
};

}  // namespace vidsmooth::VIDSMOOTH_ISA
