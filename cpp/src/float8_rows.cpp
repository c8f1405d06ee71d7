#include "fourlane/float8_rows.hpp"

#include "float8_kernels.hpp"

namespace fourlane {
namespace {

const Float8Kernels& kernels_of(InstructionSet set) {
#if defined(__x86_64__)
    if (set == InstructionSet::avx512) return avx512::kFloat8Kernels;
    if (set == InstructionSet::avx2) return avx2::kFloat8Kernels;
#endif
    static_cast<void>(set);
    return baseline::kFloat8Kernels;
}

}  // namespace

void pack_float8(RowsView x, std::byte* packed, InstructionSet set) {
    const Float8Kernels& kernels = kernels_of(set);
    for (std::int64_t r = 0; r < x.rows; ++r) {
        kernels.pack(x.data + r * x.columns, x.columns, packed + r * float8_row_bytes(x.columns));
    }
}

void unpack_float8(const std::byte* packed, MutableRowsView x, InstructionSet set) {
    const Float8Kernels& kernels = kernels_of(set);
    for (std::int64_t r = 0; r < x.rows; ++r) {
        kernels.unpack(packed + r * float8_row_bytes(x.columns), x.columns, x.data + r * x.columns);
    }
}

}  // namespace fourlane
