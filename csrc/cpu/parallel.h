// Sharing independent units of work among threads.
#pragma once

#include <stdint.h>

namespace vidsmooth {

// Calls task(context, unit) once for each unit in [0, units), on up to `threads` threads, in roughly
// ascending order. A task must not throw.
void run_units(int threads, int64_t units, void (*task)(void* context, int64_t unit), void* context);

template <class Body>
void parallel_for(int threads, int64_t units, const Body& body) {
    run_units(
        threads, units, [](void* context, int64_t unit) { (*static_cast<const Body*>(context))(unit); },
        const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace vidsmooth
