#include "cpu/parallel.h"

#include <atomic>
#include <thread>
#include <vector>

namespace vidsmooth {

void run_units(int threads, int64_t units, void (*task)(void*, int64_t), void* context) {
    if (threads > units) threads = static_cast<int>(units);
    if (threads <= 1) {
        for (int64_t unit = 0; unit < units; ++unit) task(context, unit);
        return;
    }
    std::atomic<int64_t> next{0};
    const auto work = [&] {
        for (int64_t unit; (unit = next.fetch_add(1, std::memory_order_relaxed)) < units;)
            task(context, unit);
    };
#ifdef _OPENMP
    // torch loads its OpenMP runtime before us and under the same name, so this is torch's own team of
    // threads: no second pool, and no fight with workers that still spin after a torch operator.
#    pragma omp parallel num_threads(threads)
    work();
#else
    std::vector<std::thread> helpers;
    for (int i = 1; i < threads; ++i) helpers.emplace_back(work);
    work();
    for (auto& helper : helpers) helper.join();
#endif
}

}  // namespace vidsmooth
