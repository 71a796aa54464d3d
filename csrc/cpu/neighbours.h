// A filter over frames that looks one frame back and one ahead, in one pass over memory:
//
//     out_n = s_n + before * d_{n-1} + after * d_{n+1}
//
// where d_n and s_n are made from the inputs at frame n alone. They are kept in fp32 tiles that stay in the
// cache, so each input element is read, and converted, once.
#pragma once

#include "cpu/layout.h"
#include "cpu/simd.h"

namespace vidsmooth::VIDSMOOTH_ISA {

struct Taps {
    float before, after;
};

class Neighbours {
  public:
    Neighbours(int64_t frames, bool loop, const Unit& u) : frames_(frames), loop_(loop), u_(u) {
        for (int64_t i = 0; i < u.length; ++i) d_[0][i] = d_[1][i] = 0;
    }

    // source(m): for input frame m, a function of (lanes, d, s) that sets d and s. In a loop m may be -1 or
    //     `frames`, which wrap around.
    // taps(n): the factors for output frame n; a neighbour that does not exist counts as 0.
    // sink(n): for output frame n, a function of (lanes, value) that writes it.
    template <class Source, class GetTaps, class Sink>
    void run(bool stream, const Source& source, const GetTaps& taps, const Sink& sink) {
        const int64_t begin = u_.first - (loop_ || u_.first > 0);
        const int64_t end = u_.last + (loop_ || u_.last < frames_);
        float* const s = s_;
        for (int64_t m = begin; m < end; ++m) {
            float* const d = d_[(m + 2) % 2];  // holds frame m - 2
            const auto make = source(m);
            if (m <= u_.first) {
                along_row<false>(u_.length, [=](auto lanes) {
                    vfloat dm, sm;
                    make(lanes, dm, sm);
                    lanes.store(d, dm);
                    lanes.store(s, sm);
                });
                continue;
            }
            const Taps t = taps(m - 1);
            const auto write = sink(m - 1);
            along_row(stream, u_.length, [=](auto lanes) {
                vfloat dm, sm;
                make(lanes, dm, sm);
                write(lanes, filtered(lanes, s, t.before, d, t.after, dm));
                lanes.store(d, dm);
                lanes.store(s, sm);
            });
        }
        if (end == u_.last) {  // nothing comes after the last frame of an open video
            const float* const d = d_[(end + 2) % 2];
            const Taps t = taps(end - 1);
            const auto write = sink(end - 1);
            along_row(stream, u_.length,
                      [=](auto lanes) { write(lanes, filtered(lanes, s, t.before, d, 0, vfloat{})); });
        }
    }

  private:
    template <class L>
    static vfloat filtered(L lanes, const float* s, float before, const float* d, float after, vfloat next) {
        vfloat value = lanes.load(s);
        if (before != 0) value += before * lanes.load(d);  // so that infinity beside an end stays there
        if (after != 0) value += after * next;
        return value;
    }

    int64_t frames_;
    bool loop_;
    const Unit& u_;
    float d_[2][kSmallTile], s_[kSmallTile];
};

}  // namespace vidsmooth::VIDSMOOTH_ISA
