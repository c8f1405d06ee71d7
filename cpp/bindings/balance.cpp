// Python's view of the balancer: shapes are checked here, ranges in the core.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <span>
#include <stdexcept>

#include "fourlane/balance.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

namespace balance = fourlane::balance;

using Costs = nb::ndarray<const std::int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Copies = nb::ndarray<std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

balance::CostView cost_view(const Costs& costs) {
    require(costs.shape(0) >= 1 && costs.shape(1) >= 1, "cost: expected [experts, most replicas], neither of them 0");
    return {costs.data(), static_cast<std::int64_t>(costs.shape(0)), static_cast<std::int64_t>(costs.shape(1))};
}

void choose_copies(const Costs& costs, std::int64_t slots, const Copies& copies) {
    const balance::CostView cost = cost_view(costs);
    require(copies.shape(0) == costs.shape(0), "copies: expected one for each expert");
    const nb::gil_scoped_release released;
    balance::choose_copies(cost, slots, {copies.data(), copies.size()});
}

}  // namespace

void bind_balance(nb::module_& module) {
    module.def("choose_copies", &choose_copies, "cost"_a.noconvert(), "slots"_a, "copies"_a.noconvert(),
               "Write how many replicas each expert gets so that the costliest one costs least; the GIL is released.");
}
