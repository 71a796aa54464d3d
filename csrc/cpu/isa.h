// Which instruction set the kernels use, decided once per process.
#pragma once

#include <string>
#include <vector>

namespace vidsmooth {

enum class Isa { base, avx2, avx512, avx512_bf16 };

// What this build contains and this processor runs, worst first: "base", then "avx2", "avx512",
// "avx512_bf16".
std::vector<std::string> supported_isas();

Isa current_isa();  // the best supported one, until set_isa
const char* current_isa_name();
void set_isa(const std::string& name);  // for tests; throws std::invalid_argument when not supported

}  // namespace vidsmooth

#ifdef VIDSMOOTH_X86
#    define VIDSMOOTH_CALL(name, args)                    \
        do {                                              \
            switch (::vidsmooth::current_isa()) {         \
                case ::vidsmooth::Isa::avx512_bf16:       \
                    ::vidsmooth::avx512_bf16::name(args); \
                    break;                                \
                case ::vidsmooth::Isa::avx512:            \
                    ::vidsmooth::avx512::name(args);      \
                    break;                                \
                case ::vidsmooth::Isa::avx2:              \
                    ::vidsmooth::avx2::name(args);        \
                    break;                                \
                case ::vidsmooth::Isa::base:              \
                    ::vidsmooth::base::name(args);        \
                    break;                                \
            }                                             \
        } while (0)
#else
#    define VIDSMOOTH_CALL(name, args) ::vidsmooth::base::name(args)
#endif
