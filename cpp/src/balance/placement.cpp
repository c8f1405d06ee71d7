// Find a placement: counts of replicas, a packing, and a search from there.
#include <algorithm>
#include <limits>
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
void shake_places(Layout& layout, Random& draws) {
    const std::int32_t slot = layout.fullest() * layout.width() + draws.below(layout.width());
    for (int attempt = 0; attempt < 8; ++attempt) {
        const std::int32_t other = draws.below(layout.slots());
        if (layout.rank_of(other) == layout.rank_of(slot) || !layout.may_exchange(slot, other)) continue;
        layout.exchange(slot, other);
        return;
    }
}

// Give an expert of the fullest rank another replica in the place of some other one, at random.
void shake_counts(Layout& layout, Random& draws) {
    const std::int32_t expert = layout.expert(layout.fullest() * layout.width() + draws.below(layout.width()));
    if (layout.empty(expert) || layout.copies(expert) == layout.most()) return;
    for (int attempt = 0; attempt < 16; ++attempt) {
        const std::int32_t slot = draws.below(layout.slots()), gone = layout.expert(slot);
        if (gone == expert || (!layout.empty(gone) && layout.copies(gone) < 2)) continue;
        if (!layout.free_of(layout.rank_of(slot), expert)) continue;
        layout.replace(slot, expert);
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

// Counts that give hot experts more replicas than the costliest needs: the next to the one with most load squared over
// replicas. With few experts of one size that is what fills ranks evenly.
std::vector<std::int32_t> generous_copies(const PlacementTask& task, std::int64_t slots) {
    std::vector<std::int64_t> weights;
    for (std::int64_t expert = 0; expert < task.cost.experts; ++expert) {
        for (std::int64_t copies = 1; copies <= task.cost.most; ++copies) {
            weights.push_back((task.cost(expert, copies) >> 12) * (task.cost(expert, 1) >> 12));
        }
    }
    std::vector<std::int32_t> copies_E(static_cast<std::size_t>(task.cost.experts));
    choose_copies({weights.data(), task.cost.experts, task.cost.most}, slots, copies_E);
    return copies_E;
}

// Find a placement from nothing.
Layout search(const PlacementTask& task) {
    const std::int64_t slots =
        std::min(std::int64_t{task.ranks} * task.slots_per_rank, task.cost.experts * task.cost.most);
    std::vector<std::int32_t> copies_E(static_cast<std::size_t>(task.cost.experts));
    choose_copies(task.cost, slots, copies_E);
    if (task.slots_per_rank == 2) {
        PairCounts(task.cost, std::int64_t{task.ranks} * 2, copies_E, task.seed).improve(task.good_enough, task.steps / 2);
    }
    Layout best(task);
    best.pack(copies_E);
    std::int64_t steps = task.steps;
    const auto descend = [&](Layout& layout) {
        Search search(layout, steps);
        search.descend(task.good_enough);
        steps = search.steps_left();
    };
    descend(best);
    if (best.greatest() - task.good_enough > task.good_enough / 256) {
        Layout other(task);
        other.pack(generous_copies(task, slots));
        descend(other);
        if (other.greatest() < best.greatest()) best = other;
    }
    Random draws(task.seed);
    while (steps > 0 && best.greatest() > task.good_enough) {
        Layout tried = best;
        draws.below(2) == 0 ? shake_counts(tried, draws) : shake_places(tried, draws);
        steps -= 1 + task.cost.experts * task.cost.most / 16;  // a copy of the layout is work too
        descend(tried);
        if (tried.greatest() <= best.greatest()) best = tried;
    }
    return best;
}

// Put the cheapest replicas that may be into empty slots; only as far as no rank comes to cost more than the costliest,
// or whatever they cost.
void fill(Layout& layout, Redundancy redundancy) {
    for (std::int32_t slot = 0; slot < layout.slots(); ++slot) {
        if (!layout.empty(layout.expert(slot))) continue;
        std::int32_t best = -1;
        Cost cheapest = layout.greatest() - layout.load_of(layout.rank_of(slot)) + 1;
        if (redundancy == Redundancy::filled) cheapest = std::numeric_limits<Cost>::max();
        for (std::int32_t expert = 0; expert < layout.experts(); ++expert) {
            if (layout.copies(expert) == layout.most() || !layout.free_of(layout.rank_of(slot), expert)) continue;
            const Cost coming = layout.cost(expert, layout.copies(expert) + 1);
            if (coming >= cheapest) continue;
            cheapest = coming;
            best = expert;
        }
        if (best >= 0) layout.replace(slot, best);
    }
}

// Do without second replicas where one of each expert, on as few slots as hold them, costs less than all that was found.
void prefer_bare(const PlacementTask& task, Layout& best) {
    if (task.redundancy == Redundancy::wanted) return;
    std::int64_t costliest = 0;
    for (std::int64_t expert = 0; expert < task.cost.experts; ++expert) costliest = std::max(costliest, task.cost(expert, 1));
    const auto width = static_cast<std::int32_t>((task.cost.experts + task.ranks - 1) / task.ranks);
    if (costliest >= best.greatest() || best.greatest() <= task.good_enough || best.slots() == task.cost.experts) return;
    std::vector<std::int64_t> single_E;
    for (std::int64_t expert = 0; expert < task.cost.experts; ++expert) single_E.push_back(task.cost(expert, 1));
    PlacementTask bare = task;
    bare.cost = {single_E.data(), task.cost.experts, 1};
    bare.slots_per_rank = width;
    std::vector<std::int32_t> narrow_P(static_cast<std::size_t>(task.ranks * width)), expert_P;
    const Layout found = search(bare);
    if (found.greatest() >= best.greatest()) return;
    found.store(narrow_P);
    for (std::int32_t slot = 0; slot < best.slots(); ++slot) {
        const std::int32_t nth = slot % task.slots_per_rank, rank = slot / task.slots_per_rank;
        expert_P.push_back(nth < width ? narrow_P[static_cast<std::size_t>(rank * width + nth)] : -1);
    }
    Layout single(task);
    single.load(expert_P);
    fill(single, task.redundancy);
    if (task.redundancy == Redundancy::filled) Search(single, task.steps).descend(task.good_enough);
    if (single.greatest() < best.greatest()) best = single;
}

}  // namespace

std::int64_t place(const PlacementTask& task, std::span<std::int32_t> expert_P) {
    if (std::int64_t{task.ranks} * task.slots_per_rank < task.cost.experts) {
        throw std::invalid_argument("slots: expected at least one for each expert");
    }
    Layout found = search(task);
    prefer_bare(task, found);
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
