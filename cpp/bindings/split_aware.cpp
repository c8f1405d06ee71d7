// Python's view of placements designed for splitting: shapes and ranges are checked here, layer by layer work is the core's.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <tuple>
#include <vector>

#include "fourlane/split_aware.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

namespace balance = fourlane::balance;

using SlotTable = nb::ndarray<std::int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ConstSlotTable = nb::ndarray<const std::int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using LayerCosts = nb::ndarray<const std::int64_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Samples = nb::ndarray<const double, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Balances = nb::ndarray<double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Groups = std::tuple<std::int32_t, std::int32_t, std::int32_t>;  // ranks; ranks a unit; ranks a domain
using Leaning = std::tuple<double, double, std::int32_t>;             // sd, pairs, batches

void require(bool condition, const char* message) {
    if (!condition) throw nb::value_error(message);
}

std::int32_t extent(const auto& array, std::size_t dim) { return static_cast<std::int32_t>(array.shape(dim)); }

// Tables are of the same ranks; replicas of an expert are apart and no more than `most`.
void check_table(std::span<const std::int32_t> slot_P, std::int32_t ranks, std::int32_t unit_ranks, std::int32_t experts,
                 std::int32_t most) {
    const std::size_t unit_slots = slot_P.size() / static_cast<std::size_t>(ranks) * static_cast<std::size_t>(unit_ranks);
    std::vector<std::int32_t> copies(static_cast<std::size_t>(experts));
    std::vector<std::size_t> unit_of(static_cast<std::size_t>(experts), slot_P.size());
    for (std::size_t p = 0; p < slot_P.size(); ++p) {
        if (slot_P[p] == -1) continue;
        require(slot_P[p] >= 0 && slot_P[p] < experts, "slots: expected experts in range, or -1");
        const auto expert = static_cast<std::size_t>(slot_P[p]);
        require(unit_of[expert] != p / unit_slots, "slots: expected replicas of an expert to be apart");
        unit_of[expert] = p / unit_slots;
        require(++copies[expert] <= most, "slots: expected no more replicas of an expert than cost tells of");
    }
    require(std::all_of(copies.begin(), copies.end(), [](std::int32_t held) { return held > 0; }),
            "slots: expected a slot for every expert");
}

balance::Batches batches_of(const Samples& load, std::int32_t layer, std::int32_t ranks, const Leaning& leaning,
                            std::uint64_t seed) {
    const std::size_t experts = load.shape(2);
    std::vector<double> windows;
    windows.reserve(load.shape(0) * experts);
    for (std::size_t w = 0; w < load.shape(0); ++w) {
        const double* row = load.data() + (w * load.shape(1) + static_cast<std::size_t>(layer)) * experts;
        windows.insert(windows.end(), row, row + experts);
    }
    const auto [sd, pairs, count] = leaning;
    return balance::draw_batches(windows, extent(load, 2), ranks, {sd, pairs, count}, seed);
}

void check_leaning(const Samples& load, const Leaning& leaning) {
    require(load.shape(0) >= 1 && load.shape(2) >= 1, "load: expected [samples, layers, experts]");
    require(std::get<0>(leaning) >= 0 && std::get<0>(leaning) <= 1 && std::get<1>(leaning) >= 0 && std::get<2>(leaning) >= 0,
            "leaning: expected sd in 0..1, pairs and batches of at least 0");
}

std::span<const std::int32_t> row_of(const auto& table, std::int32_t layer) {
    return {table.data() + static_cast<std::size_t>(layer) * table.shape(1), table.shape(1)};
}

std::int32_t design_for_splitting(const SlotTable& slots, const LayerCosts& cost, const Samples& load,
                                  const ConstSlotTable& previous, const Groups& groups, const Leaning& leaning,
                                  double equal_split, std::int64_t moves, std::int64_t steps, std::uint64_t seed) {
    const auto [ranks, unit_ranks, domain_ranks] = groups;
    const std::int32_t layers = extent(slots, 0);
    const std::int32_t experts = extent(cost, 1);
    const std::int32_t most = extent(cost, 2);
    require(extent(cost, 0) == layers && extent(load, 1) == layers && extent(load, 2) == experts && extent(previous, 0) == layers,
            "cost, load, previous: expected the layers and experts of slots");
    require(ranks >= 1 && slots.shape(1) > 0 && extent(slots, 1) % ranks == 0 && extent(previous, 1) % ranks == 0 && most >= 1,
            "slots: expected the same slots on each rank");
    require(unit_ranks >= 1 && domain_ranks >= 1 && ranks % unit_ranks == 0 && ranks % domain_ranks == 0,
            "groups: expected divisors of the ranks");
    check_leaning(load, leaning);
    for (std::int32_t layer = 0; layer < layers; ++layer) {
        check_table(row_of(slots, layer), ranks, unit_ranks, experts, most);
        for (const std::int32_t expert : row_of(previous, layer)) {
            require(expert >= -1 && expert < experts, "previous: expected experts in range, or -1");
        }
    }
    std::int32_t changed = 0;
    const nb::gil_scoped_release released;
    for (std::int32_t layer = 0; layer < layers; ++layer) {
        const std::size_t table = static_cast<std::size_t>(experts) * static_cast<std::size_t>(most);
        const balance::CostView costs{cost.data() + static_cast<std::size_t>(layer) * table, experts, most};
        const std::span<std::int32_t> row{slots.data() + static_cast<std::size_t>(layer) * slots.shape(1), slots.shape(1)};
        balance::DesignLimits limits{ranks, unit_ranks, domain_ranks, equal_split, row_of(previous, layer), moves, steps, seed};
        const balance::Batches batches = batches_of(load, layer, ranks, leaning, seed);
        const balance::Batches others = batches_of(load, layer, ranks, leaning, ~seed);
        if (balance::design_for_splitting(row, costs, batches, others, limits)) ++changed;
    }
    return changed;
}

void split_balance(const ConstSlotTable& slots, const Samples& load, std::int32_t ranks, const Leaning& leaning,
                   std::uint64_t seed, const Balances& out) {
    const std::int32_t layers = extent(slots, 0);
    require(extent(load, 1) == layers && out.shape(0) == slots.shape(0), "load, out: expected the layers of slots");
    require(ranks >= 1 && slots.shape(1) > 0 && extent(slots, 1) % ranks == 0, "slots: expected the same slots on each rank");
    check_leaning(load, leaning);
    for (std::int32_t layer = 0; layer < layers; ++layer) check_table(row_of(slots, layer), ranks, 1, extent(load, 2), ranks);
    const nb::gil_scoped_release released;
    for (std::int32_t layer = 0; layer < layers; ++layer) {
        const balance::Batches batches = batches_of(load, layer, ranks, leaning, seed);
        out.data()[layer] = balance::mean_split_balance(row_of(slots, layer), ranks, batches);
    }
}

}  // namespace

void bind_split_aware(nb::module_& module) {
    module.def("design_for_splitting", &design_for_splitting, "slots"_a.noconvert(), "cost"_a.noconvert(),
               "load"_a.noconvert(), "previous"_a.noconvert(), "groups"_a, "leaning"_a, "equal_split"_a, "moves"_a,
               "steps"_a, "seed"_a,
               "Improve placements of layers for splitting, in place; returns how many changed. The GIL is released.");
    module.def("split_balance", &split_balance, "slots"_a.noconvert(), "load"_a.noconvert(), "ranks"_a, "leaning"_a,
               "seed"_a, "out"_a.noconvert(),
               "Write each layer's mean over batches of the fullest rank after splitting, over the mean rank.");
}
