// Python's view of the balancer: shapes are checked here, ranges in the core.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <vector>

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

using LayerCosts = nb::ndarray<const std::int64_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using LayerSlots = nb::ndarray<std::int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ConstLayerSlots = nb::ndarray<const std::int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using LayerNumbers = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::vector<std::int64_t> place(const LayerCosts& costs, std::int32_t ranks, std::int32_t ranks_per_unit,
                                const LayerNumbers& good_enough, std::int64_t steps, std::uint64_t seed,
                                const ConstLayerSlots& previous, std::int32_t moves, std::int64_t hardly,
                                std::int32_t redundancy, const LayerSlots& slots) {
    require(costs.shape(1) >= 1 && costs.shape(2) >= 1, "cost: expected [layers, experts, most replicas], none of them 0");
    require(ranks >= 1 && ranks_per_unit >= 1 && ranks % ranks_per_unit == 0, "ranks: expected a multiple of those of a unit");
    require(slots.shape(0) == costs.shape(0) && slots.shape(1) % static_cast<std::size_t>(ranks) == 0,
            "slots: expected a row for each layer, and equally many slots for each rank");
    require(previous.shape(0) == 0 || (previous.shape(0) == slots.shape(0) && previous.shape(1) == slots.shape(1)),
            "previous: expected no row, or as many slots for each layer");
    const std::span<const std::int32_t> held{previous.data(), previous.size()};
    const auto experts_end = static_cast<std::int32_t>(costs.shape(1));
    require(std::all_of(held.begin(), held.end(), [=](std::int32_t e) { return e >= -1 && e < experts_end; }),
            "previous: no such expert");
    require(good_enough.shape(0) == costs.shape(0), "good_enough: expected one for each layer");
    require(redundancy >= 0 && redundancy <= static_cast<std::int32_t>(balance::Redundancy::wanted),
            "redundancy: expected 0 (optional), 1 (filled) or 2 (wanted)");
    const std::size_t experts = costs.shape(1), most = costs.shape(2), width = slots.shape(1);
    std::vector<std::int64_t> greatest(costs.shape(0));
    const nb::gil_scoped_release released;
    for (std::size_t layer = 0; layer < costs.shape(0); ++layer) {
        const balance::CostView cost{costs.data() + layer * experts * most, static_cast<std::int64_t>(experts),
                                     static_cast<std::int64_t>(most)};
        const balance::PlacementTask task{cost,          ranks,
                                          static_cast<std::int32_t>(width) / ranks,
                                          ranks_per_unit, good_enough.data()[layer], steps, seed,
                                          held.subspan(held.empty() ? 0 : layer * width, held.empty() ? 0 : width), moves, hardly,
                                          static_cast<balance::Redundancy>(redundancy)};
        greatest[layer] = balance::place(task, {slots.data() + layer * width, width});
    }
    return greatest;
}

std::int64_t lower_bound(const LayerNumbers& loads, std::int64_t ranks, std::int64_t slots_per_rank) {
    const std::span<const std::int64_t> load{loads.data(), loads.size()};
    require(std::all_of(load.begin(), load.end(), [](std::int64_t value) { return value >= 0 && value >> 40 == 0; }),
            "load: expected numbers in 0 .. 2^40 - 1");
    const nb::gil_scoped_release released;
    return balance::lower_bound(load, ranks, slots_per_rank);
}

}  // namespace

void bind_balance(nb::module_& module) {
    module.def("choose_copies", &choose_copies, "cost"_a.noconvert(), "slots"_a, "copies"_a.noconvert(),
               "Write how many replicas each expert gets so that the costliest one costs least; the GIL is released.");
    module.def("lower_bound", &lower_bound, "load"_a.noconvert(), "ranks"_a, "slots_per_rank"_a,
               "Return a load that the fullest rank has in every placement with equal shares; the GIL is released.");
    module.def("place", &place, "cost"_a.noconvert(), "ranks"_a, "ranks_per_unit"_a, "good_enough"_a.noconvert(), "steps"_a,
               "seed"_a, "previous"_a.noconvert(), "moves"_a, "hardly"_a, "redundancy"_a, "slots"_a.noconvert(),
               "Write a placement of each layer into `slots`; return what its costliest rank costs; the GIL is released.");
}
