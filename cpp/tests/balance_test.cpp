// Tests of the balancer's core without Python, so that sanitizers see every path (scripts/sanitize).
// What is right is tested in tests/unit/policy and tests/property; here results are held against plain loops.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "fourlane/balance.hpp"

namespace {

namespace balance = fourlane::balance;

int failures = 0;

void expect(bool condition, const char* what) {
    if (condition) return;
    ++failures;
    std::printf("FAILED: %s\n", what);
}

// Loads of `experts` with a long tail, and what a replica costs with 1 .. most of them.
std::vector<std::int64_t> random_costs(std::int64_t experts, std::int64_t most, std::uint32_t seed) {
    std::mt19937 generator(seed);
    std::lognormal_distribution<double> loads(10, 1);
    std::vector<std::int64_t> cost;
    for (std::int64_t expert = 0; expert < experts; ++expert) {
        const auto load = static_cast<std::int64_t>(loads(generator) * 1000);
        for (std::int64_t copies = 1; copies <= most; ++copies) cost.push_back(load / copies);
    }
    return cost;
}

void copies_go_to_the_costliest() {
    const std::vector<std::int64_t> data = random_costs(40, 8, 1);
    const balance::CostView cost{data.data(), 40, 8};
    std::vector<std::int32_t> copies(40);
    balance::choose_copies(cost, 64, copies);
    expect(std::accumulate(copies.begin(), copies.end(), 0) == 64, "copies fill the slots");
    std::int64_t greatest = 0;
    for (std::int64_t e = 0; e < 40; ++e) greatest = std::max(greatest, cost(e, copies[static_cast<std::size_t>(e)]));
    for (std::int64_t e = 0; e < 40; ++e) {
        const std::int64_t held = copies[static_cast<std::size_t>(e)];
        expect(held == 1 || cost(e, held - 1) >= greatest, "no expert got a copy it did not need");
    }
    bool refused = false;
    try {
        balance::choose_copies(cost, 39, copies);
    } catch (const std::invalid_argument&) {
        refused = true;
    }
    expect(refused, "fewer slots than experts are refused");
}

// Tell whether every expert is there and no two replicas share a unit of ranks.
bool legal(const balance::PlacementTask& task, const std::vector<std::int32_t>& expert_P) {
    std::vector<std::int32_t> copies(static_cast<std::size_t>(task.cost.experts));
    std::vector<std::int32_t> last(copies.size(), -1);
    for (std::size_t slot = 0; slot < expert_P.size(); ++slot) {
        if (expert_P[slot] < 0) continue;
        const auto expert = static_cast<std::size_t>(expert_P[slot]);
        const auto unit = static_cast<std::int32_t>(slot) / task.slots_per_rank / task.ranks_per_unit;
        if (last[expert] == unit) return false;
        last[expert] = unit;
        ++copies[expert];
    }
    return std::all_of(copies.begin(), copies.end(), [](std::int32_t held) { return held >= 1; });
}

std::int32_t received(const balance::PlacementTask& task, const std::vector<std::int32_t>& expert_P) {
    std::int32_t moves = 0;
    for (std::size_t slot = 0; slot < expert_P.size(); ++slot) {
        if (expert_P[slot] < 0) continue;
        const std::size_t first = slot / static_cast<std::size_t>(task.slots_per_rank) * static_cast<std::size_t>(task.slots_per_rank);
        const auto before = task.previous_P.subspan(first, static_cast<std::size_t>(task.slots_per_rank));
        moves += std::find(before.begin(), before.end(), expert_P[slot]) == before.end() ? 1 : 0;
    }
    return moves;
}

void placements_of_every_shape_are_legal_and_mended_within_their_moves() {
    struct Shape {
        std::int32_t experts, ranks, width, unit;
    };
    const Shape shapes[] = {{40, 8, 6, 1}, {40, 24, 2, 1}, {40, 24, 2, 2}, {40, 12, 4, 3}, {7, 7, 1, 1}, {9, 3, 9, 1}, {5, 4, 4, 2}};
    for (const Shape& shape : shapes) {
        const std::int64_t most = shape.ranks / shape.unit;
        const std::vector<std::int64_t> data = random_costs(shape.experts, most, 3);
        const std::vector<std::int64_t> drifted = random_costs(shape.experts, most, 4);
        balance::PlacementTask task{{data.data(), shape.experts, most}, shape.ranks, shape.width, shape.unit, 0, 20'000, 5};
        std::vector<std::int32_t> first(static_cast<std::size_t>(shape.ranks * shape.width)), then = first, bounded = first;
        balance::place(task, first);
        expect(legal(task, first), "a placement is legal");
        task.cost.data = drifted.data();
        task.previous_P = first;
        balance::place(task, then);
        expect(legal(task, then), "a renamed placement is legal");
        for (const std::int32_t moves : {0, 1, 5, 20}) {
            task.moves = moves;
            balance::place(task, bounded);
            expect(legal(task, bounded), "a repaired placement is legal");
            expect(received(task, bounded) <= moves, "a repair keeps to its moves");
        }
        std::vector<std::int64_t> load;
        std::int64_t sum = 0;
        for (std::int64_t e = 0; e < shape.experts; ++e) sum += load.emplace_back(task.cost(e, 1));
        const std::int64_t bound = balance::lower_bound(load, shape.ranks, shape.width);
        expect(bound >= sum / shape.ranks - 1, "a bound is at least the mean");
        task.previous_P = {};
        if (shape.unit == 1) expect(balance::place(task, then) + shape.width >= bound, "no placement is below the bound");
    }
}

// One expert has nearly all of the load: a second replica of it only fills the other rank, where the rest is.
void slots_are_used_where_that_is_asked() {
    std::vector<std::int64_t> data;
    for (const std::int64_t load : {0, 0, 2, 1626, 0, 0, 3250}) data.insert(data.end(), {load << 20, load << 19});
    balance::PlacementTask task{{data.data(), 7, 2}, 2, 4, 1, 0, 20'000, 0};
    std::vector<std::int32_t> found(8);
    const auto place = [&](balance::Redundancy redundancy) {
        task.redundancy = redundancy;
        const std::int64_t greatest = balance::place(task, found);
        expect(legal(task, found), "a placement is legal whatever becomes of redundant slots");
        return greatest;
    };
    const std::int64_t filled = place(balance::Redundancy::filled);
    expect(std::count(found.begin(), found.end(), -1) == 0, "redundant slots are filled");
    expect(filled <= place(balance::Redundancy::wanted), "filling is at least as good as replicas that are wanted");
    expect(std::count(found.begin(), found.end(), -1) == 0, "replicas that are wanted are there");
    expect(place(balance::Redundancy::optional) <= filled, "empty slots are never worse");
}

void a_previous_placement_that_is_none_is_refused() {
    const std::vector<std::int64_t> data = random_costs(4, 2, 1);
    balance::PlacementTask task{{data.data(), 4, 2}, 2, 3, 1, 0, 1000, 0};
    std::vector<std::int32_t> out(6);
    for (const std::vector<std::int32_t>& wrong : {std::vector<std::int32_t>{0, 0, 1, 2, 3, -1}, {0, 1, 2, 0, 1, 2}}) {
        task.previous_P = wrong;
        bool refused = false;
        try {
            balance::place(task, out);
        } catch (const std::invalid_argument&) {
            refused = true;
        }
        expect(refused, "a previous placement with replicas together, or without an expert, is refused");
    }
}

}  // namespace

int main() {
    copies_go_to_the_costliest();
    placements_of_every_shape_are_legal_and_mended_within_their_moves();
    slots_are_used_where_that_is_asked();
    a_previous_placement_that_is_none_is_refused();
    if (failures == 0) std::printf("all good\n");
    return failures == 0 ? 0 : 1;
}
