// Find a placement: counts of replicas, a packing, and a search from there.
#include <algorithm>
#include <stdexcept>
#include <vector>

#include "fourlane/balance.hpp"
#include "layout.hpp"
#include "pair_counts.hpp"
#include "random.hpp"
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

}  // namespace

std::int64_t place(const PlacementTask& task, std::span<std::int32_t> expert_P) {
    const std::int64_t slots = std::int64_t{task.ranks} * task.slots_per_rank;
    if (slots < task.cost.experts) throw std::invalid_argument("slots: expected at least one for each expert");
    std::vector<std::int32_t> copies_E(static_cast<std::size_t>(task.cost.experts));
    choose_copies(task.cost, std::min(slots, task.cost.experts * task.cost.most), copies_E);
    std::int64_t steps = task.steps;
    if (task.slots_per_rank == 2) {
        PairCounts(task.cost, slots, copies_E, task.seed).improve(task.good_enough, task.steps);
    }
    Layout best(task);
    best.pack(copies_E);
    {
        Search search(best, steps);
        search.descend(task.good_enough);
        steps = search.steps_left();
    }
    Random draws(task.seed);
    while (steps > 0 && best.greatest() > task.good_enough) {
        Layout tried = best;
        shake(tried, draws);
        Search search(tried, steps - 1);
        search.descend(task.good_enough);
        steps = search.steps_left();
        if (tried.greatest() <= best.greatest()) best = tried;
    }
    best.store(expert_P);
    return best.greatest();
}

}  // namespace fourlane::balance
