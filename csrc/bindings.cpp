// What Python sees: addresses, strides, a dtype code and a thread count become the arguments of kernels.h.
// Nothing here checks shapes: vidsmooth_fast/ops does, once.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace py = pybind11;

namespace vidsmooth {
namespace {

using Address = std::uintptr_t;             // Tensor.data_ptr(); 0 when absent
using Strides = std::vector<std::int64_t>;  // Tensor.stride(); empty when absent
using Sizes = std::array<std::int64_t, 5>;

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
                      float strength, bool loop, int threads) {
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
    a.threads = threads;
    VIDSMOOTH_CALL(noise_constraint, a);
}

}  // namespace
}  // namespace vidsmooth

PYBIND11_MODULE(_C, m) {
    using namespace vidsmooth;
    const auto no_gil = py::call_guard<py::gil_scoped_release>();
    m.doc() = "CPU kernels of vidsmooth_fast.ops; pointers in, nothing checked. Not a public interface.";
    m.def("isa", &current_isa_name, "The instruction set in use.");
    m.def("isas", &supported_isas, "The instruction sets that this build and processor have, worst first.");
    m.def("set_isa", &set_isa, py::arg("name"), "Use another instruction set (tests).");
    m.def("noise_constraint", &noise_constraint, no_gil);
}
