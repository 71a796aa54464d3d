#include "cpu/isa.h"

#include <atomic>
#include <stdexcept>

#ifdef VIDSMOOTH_X86
#    include <cpuid.h>
#endif

namespace vidsmooth {
namespace {

const char* const kNames[] = {"base", "avx2", "avx512", "avx512_bf16"};

Isa best() {
#ifdef VIDSMOOTH_X86
    __builtin_cpu_init();  // __builtin_cpu_supports also asks whether the system saves the wide registers
    unsigned a = 0, b = 0, c = 0, d = 0;
    const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 29));
    if (f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5)) ? Isa::avx512_bf16
                                                                              : Isa::avx512;
        return Isa::avx2;
    }
#endif
    return Isa::base;
}

std::atomic<Isa>& chosen() {
    static std::atomic<Isa> isa{best()};
    return isa;
}

}  // namespace

Isa current_isa() {
    return chosen().load(std::memory_order_relaxed);
}

const char* current_isa_name() {
    return kNames[static_cast<int>(current_isa())];
}

std::vector<std::string> supported_isas() {
    return {kNames, kNames + static_cast<int>(best()) + 1};
}

void set_isa(const std::string& name) {
    for (int i = 0; i <= static_cast<int>(best()); ++i) {
        if (name == kNames[i]) {
            chosen().store(static_cast<Isa>(i));
            return;
        }
    }
    throw std::invalid_argument("isa: expected one that this processor runs, got " + name);
}

}  // namespace vidsmooth
