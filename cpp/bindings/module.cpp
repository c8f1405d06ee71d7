// Python's view of the native core. The only file that knows nanobind; no logic of its own.
#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "fourlane/crc32c.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

// A C-contiguous buffer of any kind, held while in scope.
class Buffer {
public:
    explicit Buffer(nb::handle object) {
        if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) throw nb::python_error();
    }
    ~Buffer() { PyBuffer_Release(&view_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    std::span<const std::byte> bytes() const {
        return {static_cast<const std::byte*>(view_.buf), static_cast<std::size_t>(view_.len)};
    }

private:
    Py_buffer view_{};
};

using Checksum = std::uint32_t (*)(std::span<const std::byte>, std::uint32_t);

template <Checksum function>
std::uint32_t checksum(nb::handle data, std::uint32_t seed) {
    const Buffer buffer(data);
    const nb::gil_scoped_release released;
    return function(buffer.bytes(), seed);
}

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "Native core of fourlane. Not public: every function has a Python face that checks its arguments.";
    module.def("crc32c", &checksum<&fourlane::detail::crc32c_hardware>, "data"_a, "seed"_a = 0U,
               "Return the CRC-32C of a contiguous buffer, continuing `seed`; the GIL is released.");
    module.def("crc32c_table", &checksum<&fourlane::detail::crc32c_table>, "data"_a, "seed"_a = 0U,
               "Return the same by table, as on machines without the instruction (for tests).");
}
