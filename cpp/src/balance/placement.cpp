// Find a placement: counts of replicas, a packing, and a search from there.
#include <algorithm>
#include <stdexcept>
#include <vector>

#include "fourlane/balance.hpp"
#include "layout.hpp"
#include "pair_counts.hpp"
#include "random.hpp"
#include "repair.hpp"
#include "search.hpp"

namespace fourlane::balance {

namespace {

// Exchange an expert of the fullest rank for another, at random.
void shake(Layout& layout, Random& draws) {
    const std::int32_t slot = layout.fullest() * layout.width() + draws.below(layout.width());
    for (int attempt = 0; attempt < 8; ++attempt) {
        const std::int32_t other = draws.below(layout.slots());
        if (layout.rank_of(other) == layout.rank_of(slot) || !layout.may_exchange(slot, other)) continue;
        layout.exchange(slot, other);
        return;
    }
}

// Throws std::invalid_argument unless the previous placement is one that the task allows.
void check_previous(const PlacementTask& task) {
    const auto experts = static_cast<std::size_t>(task.cost.experts);
    const auto unit_slots = static_cast<std::size_t>(task.ranks_per_unit * task.slots_per_rank);
    std::vector<std::int64_t> copies_E(experts), last_unit_E(experts, -1);
    for (std::size_t slot = 0; slot < task.previous_P.size(); ++slot) {
        if (task.previous_P[slot] < 0) continue;
        const auto expert = static_cast<std::size_t>(task.previous_P[slot]);
        const auto unit = static_cast<std::int64_t>(slot / unit_slots);
        if (last_unit_E[expert] == unit) throw std::invalid_argument("previous: replicas of an expert are not apart");
        last_unit_E[expert] = unit;
        ++copies_E[expert];
    }
    const auto [least, most] = std::minmax_element(copies_E.begin(), copies_E.end());
    if (*least < 1 || *most > task.cost.most) throw std::invalid_argument("previous: an expert has none or too many replicas");
}

// Find a placement from nothing.
Layout search(const PlacementTask& task) {
    const std::int64_t slots = std::int64_t{task.ranks} * task.slots_per_rank;
    std::vector<std::int32_t> copies_E(static_cast<std::size_t>(task.cost.experts));
    choose_copies(task.cost, std::min(slots, task.cost.experts * task.cost.most), copies_E);
    if (task.slots_per_rank == 2) PairCounts(task.cost, slots, copies_E, task.seed).improve(task.good_enough, task.steps);
    Layout best(task);
    best.pack(copies_E);
    std::int64_t steps = task.steps;
    const auto descend = [&](Layout& layout) {
        Search search(layout, steps);
        search.descend(task.good_enough);
        steps = search.steps_left();
    };
    descend(best);
    Random draws(task.seed);
    while (steps > 0 && best.greatest() > task.good_enough) {
        Layout tried = best;
        shake(tried, draws);
        --steps;
        descend(tried);
        if (tried.greatest() <= best.greatest()) best = tried;
    }
    return best;
}

}  // namespace

std::int64_t place(const PlacementTask& task, std::span<std::int32_t> expert_P) {
    if (std::int64_t{task.ranks} * task.slots_per_rank < task.cost.experts) {
        throw std::invalid_argument("slots: expected at least one for each expert");
    }
    const Layout found = search(task);
    found.store(expert_P);
    if (task.previous_P.empty()) return found.greatest();
    check_previous(task);
    Layout previous(task);
    previous.load(task.previous_P);
    if (task.moves == 0 || previous.greatest() - found.greatest() <= (found.greatest() >> 20) * task.hardly) {
        previous.store(expert_P);
        return previous.greatest();
    }
    std::int64_t greatest = found.greatest();
    rename_for(task, expert_P);
    if (task.moves > 0 && Origin(task).received(expert_P) > task.moves) {
        const std::vector<std::int32_t> fresh_P(expert_P.begin(), expert_P.end());
        greatest = repair(task, fresh_P, expert_P);
    }
    keep_slots(task, expert_P);
    return greatest;
}

}  // namespace fourlane::balance
