// Local search: bring down the fullest rank of a layout, one change after the other.
#include "search.hpp"

#include <algorithm>
#include <vector>

namespace fourlane::balance {

Origin::Origin(const PlacementTask& task)
    : experts_(static_cast<std::int32_t>(task.cost.experts)),
      width_(task.slots_per_rank),
      held_(static_cast<std::size_t>(task.ranks) * static_cast<std::size_t>(experts_)) {
    for (std::size_t slot = 0; slot < task.previous_P.size(); ++slot) {
        const std::int32_t expert = task.previous_P[slot];
        if (expert < 0) continue;
        held_[slot / static_cast<std::size_t>(width_) * static_cast<std::size_t>(experts_) + static_cast<std::size_t>(expert)] = 1;
    }
}

std::int32_t Origin::received(std::span<const std::int32_t> expert_P) const {
    std::int32_t moves = 0;
    for (std::size_t slot = 0; slot < expert_P.size(); ++slot) {
        if (expert_P[slot] >= 0) moves += received(static_cast<std::int32_t>(slot) / width_, expert_P[slot]);
    }
    return moves;
}

void Search::descend(Cost good_enough) {
    while (steps_ > 0 && layout_.greatest() > good_enough && (exchange_one() || replace_one() || exchange_two())) {
    }
}

// Exchange one expert of the fullest rank for a cheaper one of another so that the costlier of both ranks costs least.
bool Search::exchange_one() {
    const std::int32_t rank = layout_.fullest(), width = layout_.width();
    const Cost full = layout_.load_of(rank);
    Cost peak = full;
    Exchange best;
    for (const std::int32_t other : layout_.by_load()) {
        const Cost load = layout_.load_of(other);
        if ((full + load + 1) / 2 >= peak) break;  // no exchange makes both cost less than their mean
        for (std::int32_t slot = rank * width; slot < (rank + 1) * width; ++slot) {
            const Cost value = layout_.value(slot);
            for (std::int32_t there = other * width; there < (other + 1) * width; ++there) {
                const Cost less = value - layout_.value(there);
                const Cost costlier = std::max(full - less, load + less);
                if (costlier >= peak || !layout_.may_exchange(slot, there)) continue;
                if (exchange_moves(slot, there) > moves_) continue;
                peak = costlier;
                best = {slot, there};
            }
        }
        steps_ -= width * width;
    }
    if (best.slot < 0) return false;
    moves_ -= exchange_moves(best.slot, best.other);
    layout_.exchange(best.slot, best.other);
    return true;
}

// The same with two experts of each.
bool Search::exchange_two() {
    const std::int32_t rank = layout_.fullest(), width = layout_.width();
    if (width < 4) return false;  // three of four exchange two as well as the other two
    const Cost full = layout_.load_of(rank);
    Cost peak = full;
    Exchange best;
    for (const std::int32_t other : layout_.by_load()) {
        const Cost load = layout_.load_of(other);
        if ((full + load + 1) / 2 >= peak) break;
        for (std::int32_t a = rank * width; a < (rank + 1) * width; ++a) {
            for (std::int32_t b = a + 1; b < (rank + 1) * width; ++b) {
                const Cost value = layout_.value(a) + layout_.value(b);
                for (std::int32_t c = other * width; c < (other + 1) * width; ++c) {
                    for (std::int32_t d = c + 1; d < (other + 1) * width; ++d) {
                        const Cost less = value - layout_.value(c) - layout_.value(d);
                        const Cost costlier = std::max(full - less, load + less);
                        if (costlier >= peak) continue;
                        if (!layout_.may_exchange(a, c) || !layout_.may_exchange(b, d)) continue;
                        if (exchange_moves(a, c) + exchange_moves(b, d) > moves_) continue;
                        peak = costlier;
                        best = {a, c, b, d};
                    }
                }
            }
        }
        steps_ -= width * width * width * width / 4;
    }
    if (best.slot < 0) return false;
    moves_ -= exchange_moves(best.slot, best.other) + exchange_moves(best.slot_too, best.other_too);
    layout_.exchange(best.slot, best.other);
    layout_.exchange(best.slot_too, best.other_too);
    return true;
}

// Give an expert of the fullest rank another replica somewhere, or that rank another expert's in place of one of its own.
bool Search::replace_one() {
    const std::int32_t rank = layout_.fullest(), width = layout_.width();
    Cost peak = layout_.load_of(rank);
    Replacement best;
    for (std::int32_t slot = rank * width; slot < (rank + 1) * width; ++slot) {
        const std::int32_t expert = layout_.expert(slot);
        if (layout_.empty(expert)) continue;
        for (std::int32_t there = 0; there < layout_.slots(); ++there) weigh(there, expert, peak, best);
    }
    for (std::int32_t slot = rank * width; slot < (rank + 1) * width; ++slot) {
        for (std::int32_t expert = 0; expert < layout_.experts(); ++expert) weigh(slot, expert, peak, best);
    }
    if (best.slot < 0) return false;
    moves_ -= more_moves(best.slot, best.expert);
    layout_.replace(best.slot, best.expert);
    return true;
}

void Search::weigh(std::int32_t slot, std::int32_t expert, Cost& peak, Replacement& best) {
    --steps_;
    const std::int32_t gone = layout_.expert(slot);
    if (!layout_.empty(gone) && layout_.copies(gone) < 2) return;
    if (layout_.copies(expert) == layout_.most() || gone == expert) return;
    if (!layout_.free_of(layout_.rank_of(slot), expert)) return;
    if (more_moves(slot, expert) > moves_) return;
    const Cost after = peak_after(slot, expert, peak);
    if (after >= peak) return;
    peak = after;
    best = {slot, expert};
}

// What the costliest of the ranks that a replacement touches costs after it; any figure from `limit` on if not below it.
Cost Search::peak_after(std::int32_t slot, std::int32_t expert, Cost limit) const {
    const std::int32_t gone = layout_.expert(slot), rank = layout_.rank_of(slot), fullest = layout_.fullest();
    const Cost coming = layout_.cost(expert, layout_.copies(expert) + 1);
    Cost peak = layout_.load_of(rank) - layout_.value(slot) + coming;
    if (peak >= limit) return limit;
    const Cost less = layout_.cost(expert, layout_.copies(expert)) - coming;
    if (rank != fullest) peak = std::max(peak, layout_.load_of(fullest) - less);
    if (layout_.empty(gone)) return peak;
    const Cost more = layout_.cost(gone, layout_.copies(gone) - 1) - layout_.value(slot);
    for (const std::int32_t other : layout_.slots_of(gone)) {
        if (other == slot) continue;
        const std::int32_t there = layout_.rank_of(other);
        peak = std::max(peak, layout_.load_of(there) + more - (layout_.has(there, expert) ? less : 0));
        if (peak >= limit) return limit;
    }
    return peak;
}

}  // namespace fourlane::balance
