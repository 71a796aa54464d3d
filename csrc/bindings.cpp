// What Python sees: addresses, strides and a dtype code become the arguments of kernels.h, for a number of
// threads of the CPU or a CUDA stream. Nothing here checks shapes: vidsmooth_fast/ops does, once.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cuda/kernels.h"

namespace py = pybind11;

namespace vidsmooth {
namespace {

using Address = std::uintptr_t;             // Tensor.data_ptr(); 0 when absent
using Strides = std::vector<std::int64_t>;  // Tensor.stride(); empty when absent
using Sizes = std::array<std::int64_t, 5>;

using Where = std::variant<int, std::pair<int, Address>>;  // threads, or (CUDA device, stream)

// What a build without CUDA says, and what one with it was compiled for; CMakeLists.txt sets one of them.
#ifdef VIDSMOOTH_CUDA_ARCHITECTURES
constexpr const char* kCuda = VIDSMOOTH_CUDA_ARCHITECTURES;
constexpr const char* kNoCuda = "";
#    define VIDSMOOTH_CUDA_CALL(name, args, where) \
        cuda::name(args, cuda::Stream{where.first, reinterpret_cast<void*>(where.second)})
#else
#    ifndef VIDSMOOTH_NO_CUDA
#        define VIDSMOOTH_NO_CUDA "nobody asked for it"
#    endif
constexpr const char* kCuda = "";
constexpr const char* kNoCuda = VIDSMOOTH_NO_CUDA;
#    define VIDSMOOTH_CUDA_CALL(name, args, where) \
        throw std::runtime_error(std::string("built without CUDA: ") + kNoCuda)
#endif

#define VIDSMOOTH_RUN(name, args, where)                              \
    do {                                                              \
        if (const int* threads = std::get_if<int>(&where)) {          \
            args.threads = *threads;                                  \
            VIDSMOOTH_CALL(name, args);                               \
        } else {                                                      \
            [[maybe_unused]] const auto& device = std::get<1>(where); \
            VIDSMOOTH_CUDA_CALL(name, args, device);                  \
        }                                                             \
    } while (0)

template <class T = void>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

Operand operand(Address address, const Strides& strides) {
    Operand o;
    o.data = pointer<const void>(address);
    for (size_t i = 0; i < strides.size(); ++i) o.stride[i] = strides[i];
    return o;
}

void noise_constraint(int dtype, Sizes size, Address eps, Strides eps_strides, Address x, Strides x_strides,
                      Address reference, Strides reference_strides, Address out, float c_over_lambda,
                      float strength, bool loop, const Where& where) {
    NoiseConstraintArgs a;
    a.dtype = static_cast<DType>(dtype);
    std::copy(size.begin(), size.end(), a.size);
    a.eps = operand(eps, eps_strides);
    a.x = operand(x, x_strides);
    a.reference = operand(reference, reference_strides);
    a.out = pointer(out);
    a.c_over_lambda = c_over_lambda;
    a.strength = strength;
    a.loop = loop;
    VIDSMOOTH_RUN(noise_constraint, a, where);
}

void inversion_blend(int dtype, Sizes size, Address inverted, Strides inverted_strides, Address noise,
                     Strides noise_strides, Address out, float weight, float forward, float backward,
                     bool loop, const Where& where) {
    InversionBlendArgs a;
    a.dtype = static_cast<DType>(dtype);
    std::copy(size.begin(), size.end(), a.size);
    a.inverted = operand(inverted, inverted_strides);
    a.noise = operand(noise, noise_strides);
    a.out = pointer(out);
    a.weight = weight;
    a.forward = forward;
    a.backward = backward;
    a.loop = loop;
    VIDSMOOTH_RUN(inversion_blend, a, where);
}

// strides: of (G, B, N, C, K, H, W). The three addresses of `coverage` are those in kernels.h.
WindowStack window_stack(Address data, const Strides& strides, std::int64_t length,
                         const std::vector<float>& branch_weights, Address weights,
                         const Strides& weight_strides, std::array<Address, 3> coverage) {
    WindowStack w;
    w.data = pointer<const void>(data);
    w.length = length;
    w.branches = static_cast<std::int64_t>(branch_weights.size());
    w.branch_stride = strides[0];
    std::copy_n(strides.begin() + 1, 6, w.stride);
    w.branch_weights = branch_weights.data();
    w.weights = pointer<const float>(weights);
    std::copy_n(weight_strides.begin(), 4, w.weight_stride);
    w.first = pointer<const std::int64_t>(coverage[0]);
    w.window = pointer<const std::int64_t>(coverage[1]);
    w.position = pointer<const std::int64_t>(coverage[2]);
    return w;
}

void window_merge(int dtype, Sizes size, Address windows, Strides strides, std::int64_t length,
                  Address weights, Strides weight_strides, std::array<Address, 3> coverage, Address out,
                  const Where& where) {
    const std::vector<float> one{1.0f};
    strides.insert(strides.begin(), 0);
    WindowMergeArgs a;
    a.dtype = static_cast<DType>(dtype);
    std::copy(size.begin(), size.end(), a.size);
    a.windows = window_stack(windows, strides, length, one, weights, weight_strides, coverage);
    a.out = pointer(out);
    VIDSMOOTH_RUN(window_merge, a, where);
}

void denoise_step(int dtype, Sizes size, Address pred, Strides pred_strides, std::int64_t length,
                  std::vector<float> branch_weights, Address weights, Strides weight_strides,
                  std::array<Address, 3> coverage, Address x, Strides x_strides, Address history,
                  Strides history_strides, Address reference, Strides reference_strides, Address noise,
                  Strides noise_strides, float a, float b, float c, float noise_scale,
                  std::array<float, 2> to_eps, std::array<float, 2> to_clean, float c_over_lambda,
                  float strength, bool loop, Address out, Address clean, const Where& where) {
    DenoiseStepArgs args;
    args.dtype = static_cast<DType>(dtype);
    std::copy(size.begin(), size.end(), args.size);
    args.pred = window_stack(pred, pred_strides, length, branch_weights, weights, weight_strides, coverage);
    args.x = operand(x, x_strides);
    args.history = operand(history, history_strides);
    args.reference = operand(reference, reference_strides);
    args.noise = operand(noise, noise_strides);
    args.a = a;
    args.b = b;
    args.c = c;
    args.noise_scale = noise_scale;
    std::copy(to_eps.begin(), to_eps.end(), args.to_eps);
    std::copy(to_clean.begin(), to_clean.end(), args.to_clean);
    args.c_over_lambda = c_over_lambda;
    args.strength = strength;
    args.loop = loop;
    args.out = pointer<float>(out);
    args.clean = pointer<float>(clean);
    VIDSMOOTH_RUN(denoise_step, args, where);
}

// factors: on the CPU a list of each window's shares in its frames; on a GPU the address of the window's
// weights.
void temporal_attention(int dtype, std::array<std::int64_t, 5> size, std::array<Address, 3> in,
                        std::array<std::array<std::int64_t, 2>, 3> strides, Address out, float scale,
                        const std::vector<std::int64_t>& starts, std::int64_t window,
                        const std::variant<Address, std::vector<float>>& factors, const Where& where) {
    TemporalAttentionArgs a;
    a.dtype = static_cast<DType>(dtype);
    a.batch = size[0], a.frames = size[1], a.pixels = size[2], a.heads = size[3], a.width = size[4];
    for (int i = 0; i < 3; ++i) {
        a.in[i] = pointer<const void>(in[i]);
        std::copy(strides[i].begin(), strides[i].end(), a.stride[i]);
    }
    a.out = pointer(out);
    a.scale = scale;
    a.windows = static_cast<std::int64_t>(starts.size());
    a.window = window;
    a.starts = starts.data();
    if (const auto* shares = std::get_if<std::vector<float>>(&factors))
        a.factors = shares->empty() ? nullptr : shares->data();
    else
        a.factors = pointer<const float>(std::get<Address>(factors));
    VIDSMOOTH_RUN(temporal_attention, a, where);
}

using Indices = std::vector<std::int64_t>;

// size: batch, frames, pixels, heads, width, key frames, key pixels. first, key, bias: as in kernels.h.
SparseCausalAttentionArgs sparse_causal_attention_args(
    int dtype, const std::array<std::int64_t, 7>& size, const std::array<Address, 3>& in,
    const std::array<std::array<std::int64_t, 2>, 3>& strides, Address out, float scale, const Indices& first,
    const Indices& key, const std::vector<float>& bias, int threads) {
    SparseCausalAttentionArgs a;
    a.dtype = static_cast<DType>(dtype);
    a.batch = size[0], a.frames = size[1], a.pixels = size[2], a.heads = size[3], a.width = size[4];
    a.key_frames = size[5], a.key_pixels = size[6];
    for (int i = 0; i < 3; ++i) {
        a.in[i] = pointer<const void>(in[i]);
        std::copy(strides[i].begin(), strides[i].end(), a.stride[i]);
    }
    a.out = pointer(out);
    a.scale = scale;
    a.first = first.data();
    a.key = key.data();
    a.bias = bias.data();
    a.threads = threads;
    return a;
}

void sparse_causal_attention(int dtype, const std::array<std::int64_t, 7>& size,
                             const std::array<Address, 3>& in,
                             const std::array<std::array<std::int64_t, 2>, 3>& strides, Address out,
                             float scale, const Indices& first, const Indices& key,
                             const std::vector<float>& bias, int threads) {
    const auto a =
        sparse_causal_attention_args(dtype, size, in, strides, out, scale, first, key, bias, threads);
    VIDSMOOTH_CALL(sparse_causal_attention, a);
}

void sparse_causal_attention_backward(int dtype, const std::array<std::int64_t, 7>& size,
                                      const std::array<Address, 3>& in,
                                      const std::array<std::array<std::int64_t, 2>, 3>& strides, Address to_q,
                                      float scale, const Indices& first, const Indices& key,
                                      const std::vector<float>& bias, Address grad,
                                      const std::array<std::int64_t, 2>& grad_strides, Address to_k,
                                      Address to_v, Address parts, int threads) {
    SparseCausalAttentionBackwardArgs a;
    a.of = sparse_causal_attention_args(dtype, size, in, strides, to_q, scale, first, key, bias, threads);
    a.grad = pointer<const void>(grad);
    std::copy(grad_strides.begin(), grad_strides.end(), a.grad_stride);
    a.to_k = pointer(to_k);
    a.to_v = pointer(to_v);
    a.parts = pointer<float>(parts);
    VIDSMOOTH_CALL(sparse_causal_attention_backward, a);
}

// size: images, frames, pixels, channels, groups.
GroupNormSiluArgs group_norm_args(int dtype, const Sizes& size, Address x,
                                  const std::array<std::int64_t, 2>& strides, Address weight, Address bias,
                                  Address out, float eps, bool silu, int threads) {
    GroupNormSiluArgs a;
    a.dtype = static_cast<DType>(dtype);
    a.images = size[0], a.frames = size[1], a.pixels = size[2], a.channels = size[3], a.groups = size[4];
    a.x = pointer<const void>(x);
    std::copy(strides.begin(), strides.end(), a.stride);
    a.weight = pointer<const float>(weight);
    a.bias = pointer<const float>(bias);
    a.out = pointer(out);
    a.eps = eps;
    a.silu = silu;
    a.threads = threads;
    return a;
}

void group_norm_silu(int dtype, const Sizes& size, Address x, const std::array<std::int64_t, 2>& strides,
                     Address weight, Address bias, Address out, float eps, bool silu, int threads) {
    const auto a = group_norm_args(dtype, size, x, strides, weight, bias, out, eps, silu, threads);
    VIDSMOOTH_CALL(group_norm_silu, a);
}

void group_norm_silu_backward(int dtype, const Sizes& size, Address x,
                              const std::array<std::int64_t, 2>& strides, Address weight, Address bias,
                              Address out, float eps, bool silu, Address grad,
                              const std::array<std::int64_t, 2>& grad_strides, Address sums, int threads) {
    GroupNormSiluBackwardArgs a;
    a.of = group_norm_args(dtype, size, x, strides, weight, bias, out, eps, silu, threads);
    a.grad = pointer<const void>(grad);
    std::copy(grad_strides.begin(), grad_strides.end(), a.grad_stride);
    a.sums = pointer<double>(sums);
    VIDSMOOTH_CALL(group_norm_silu_backward, a);
}

// size: images, height, width, input channels, output channels.
void convolution(int dtype, const Sizes& size, Address x, const std::array<std::int64_t, 3>& strides,
                 Address weight, Address bias, Address out, int threads) {
    ConvolutionArgs a;
    a.dtype = static_cast<DType>(dtype);
    a.images = size[0], a.height = size[1], a.width = size[2], a.in_channels = size[3],
    a.out_channels = size[4];
    a.x = pointer<const void>(x);
    std::copy(strides.begin(), strides.end(), a.stride);
    a.weight = pointer<const void>(weight);
    a.bias = pointer<const float>(bias);
    a.out = pointer(out);
    a.threads = threads;
    VIDSMOOTH_CALL(convolution, a);
}

// size: rows, inputs, hidden, outputs. weights, biases: in, out.
void feed_forward(int dtype, const std::array<std::int64_t, 4>& size, Address x,
                  const std::array<Address, 2>& weights, const std::array<Address, 2>& biases, Address y,
                  int threads) {
    FeedForwardArgs a;
    a.dtype = static_cast<DType>(dtype);
    a.rows = size[0], a.in = size[1], a.hidden = size[2], a.out = size[3];
    a.x = pointer<const void>(x);
    a.weight_in = pointer<const void>(weights[0]);
    a.weight_out = pointer<const void>(weights[1]);
    a.bias_in = pointer<const float>(biases[0]);
    a.bias_out = pointer<const float>(biases[1]);
    a.y = pointer(y);
    a.threads = threads;
    VIDSMOOTH_CALL(feed_forward, a);
}

}  // namespace
}  // namespace vidsmooth

PYBIND11_MODULE(_C, m) {
    using namespace vidsmooth;
    const auto no_gil = py::call_guard<py::gil_scoped_release>();
    m.doc() =
        "The compiled kernels of vidsmooth_fast.ops; pointers in, nothing checked. Not a public interface.";
    m.attr("compiler") = __VERSION__;
    m.attr("cuda") = kCuda;
    m.attr("no_cuda") = kNoCuda;
    m.def("isa", &current_isa_name, "The instruction set in use.");
    m.def("isas", &supported_isas, "The instruction sets that this build and processor have, worst first.");
    m.def("set_isa", &set_isa, py::arg("name"), "Use another instruction set (tests).");
    m.def("noise_constraint", &noise_constraint, no_gil);
    m.def("inversion_blend", &inversion_blend, no_gil);
    m.def("window_merge", &window_merge, no_gil);
    m.def("denoise_step", &denoise_step, no_gil);
    m.def("temporal_attention", &temporal_attention, no_gil);
    m.def("sparse_causal_attention", &sparse_causal_attention, no_gil);
    m.def("sparse_causal_attention_backward", &sparse_causal_attention_backward, no_gil);
    m.def("group_norm_silu", &group_norm_silu, no_gil);
    m.def("group_norm_silu_backward", &group_norm_silu_backward, no_gil);
    m.def("convolution", &convolution, no_gil);
    m.def("feed_forward", &feed_forward, no_gil);
}
