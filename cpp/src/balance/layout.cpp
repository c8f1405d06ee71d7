// A layer's placement while it is searched: keeping its tables true, and filling it.
#include "layout.hpp"

#include <algorithm>
#include <functional>
#include <queue>
#include <stdexcept>
#include <utility>

namespace fourlane::balance {

namespace {

std::size_t at(std::int32_t index) { return static_cast<std::size_t>(index); }

}  // namespace

Layout::Layout(const PlacementTask& task)
    : cost_(task.cost),
      experts_(static_cast<std::int32_t>(task.cost.experts)),
      ranks_(task.ranks),
      width_(task.slots_per_rank),
      most_(static_cast<std::int32_t>(task.cost.most)),
      unit_(task.ranks_per_unit),
      expert_(at(ranks_ * width_)),
      value_(at(ranks_ * width_)),
      load_(at(ranks_)),
      copies_(at(experts_) + 1),
      where_(at(experts_) * at(most_)),
      nth_(at(ranks_ * width_)),
      holds_(at(ranks_ / unit_) * at(experts_)),
      order_(at(ranks_)),
      place_(at(ranks_)) {
    clear();
}

void Layout::clear() {
    std::fill(expert_.begin(), expert_.end(), experts_);
    std::fill(value_.begin(), value_.end(), 0);
    std::fill(load_.begin(), load_.end(), 0);
    std::fill(copies_.begin(), copies_.end(), 0);
    std::fill(holds_.begin(), holds_.end(), 0);
    sort_ranks();
}

void Layout::sort_ranks() {
    for (std::int32_t rank = 0; rank < ranks_; ++rank) order_[at(rank)] = rank;
    std::sort(order_.begin(), order_.end(), [this](std::int32_t a, std::int32_t b) {
        return std::pair{load_[at(a)], a} < std::pair{load_[at(b)], b};
    });
    for (std::int32_t place = 0; place < ranks_; ++place) place_[at(order_[at(place)])] = place;
}

// Bring one rank to its place in the order after its load changed.
void Layout::reorder(std::int32_t rank) {
    std::int32_t place = place_[at(rank)];
    const std::pair key{load_[at(rank)], rank};
    const auto key_at = [this](std::int32_t p) { return std::pair{load_[at(order_[at(p)])], order_[at(p)]}; };
    const auto shift = [this, &place](std::int32_t step) {
        order_[at(place)] = order_[at(place + step)];
        place_[at(order_[at(place)])] = place;
        place += step;
    };
    while (place > 0 && key < key_at(place - 1)) shift(-1);
    while (place + 1 < ranks_ && key_at(place + 1) < key) shift(1);
    order_[at(place)] = rank;
    place_[at(rank)] = place;
}

// Table entries of one replica, without regard to what it costs.
void Layout::put(std::int32_t slot, std::int32_t expert) {
    expert_[at(slot)] = expert;
    if (empty(expert)) return;
    nth_[at(slot)] = copies_[at(expert)]++;
    where_[at(expert) * at(most_) + at(nth_[at(slot)])] = slot;
    holds_[holds_at(rank_of(slot), expert)] = 1;
}

void Layout::take(std::int32_t slot) {
    const std::int32_t expert = expert_[at(slot)];
    if (empty(expert)) return;
    const std::size_t first = at(expert) * at(most_);
    const std::int32_t last = where_[first + at(--copies_[at(expert)])];
    where_[first + at(nth_[at(slot)])] = last;
    nth_[at(last)] = nth_[at(slot)];
    holds_[holds_at(rank_of(slot), expert)] = 0;
    expert_[at(slot)] = experts_;
}

// Bring loads up to date with what each replica of an expert costs now.
void Layout::revalue(std::int32_t expert) {
    if (empty(expert) || copies(expert) == 0) return;
    const Cost value = cost(expert, copies(expert));
    for (const std::int32_t slot : slots_of(expert)) {
        load_[at(rank_of(slot))] += value - value_[at(slot)];
        value_[at(slot)] = value;
        reorder(rank_of(slot));
    }
}

bool Layout::has(std::int32_t rank, std::int32_t expert) const {
    if (free_of(rank, expert)) return false;
    if (unit_ == 1) return true;
    const auto first = expert_.begin() + rank * width_;
    return std::find(first, first + width_, expert) != first + width_;
}

bool Layout::may_exchange(std::int32_t slot, std::int32_t other) const {
    const std::int32_t rank = rank_of(slot), there = rank_of(other);
    return !apart(rank, there) || (free_of(there, expert(slot)) && free_of(rank, expert(other)));
}

void Layout::exchange(std::int32_t slot, std::int32_t other) {
    const std::int32_t expert = expert_[at(slot)], coming = expert_[at(other)];
    const Cost more = value_[at(other)] - value_[at(slot)];
    take(slot);
    take(other);
    put(slot, coming);
    put(other, expert);
    std::swap(value_[at(slot)], value_[at(other)]);
    load_[at(rank_of(slot))] += more;
    load_[at(rank_of(other))] -= more;
    reorder(rank_of(slot));
    reorder(rank_of(other));
}

void Layout::replace(std::int32_t slot, std::int32_t expert) {
    const std::int32_t gone = expert_[at(slot)];
    take(slot);
    put(slot, expert);
    load_[at(rank_of(slot))] -= value_[at(slot)];
    value_[at(slot)] = 0;
    reorder(rank_of(slot));
    revalue(gone);
    revalue(expert);
}

void Layout::load(std::span<const std::int32_t> expert_P) {
    clear();
    for (std::int32_t slot = 0; slot < slots(); ++slot) {
        if (expert_P[at(slot)] >= 0) put(slot, expert_P[at(slot)]);
    }
    settle();
}

void Layout::store(std::span<std::int32_t> expert_P) const {
    for (std::int32_t slot = 0; slot < slots(); ++slot) {
        const std::int32_t held = expert(slot);
        expert_P[at(slot)] = empty(held) ? -1 : held;
    }
}

void Layout::pack(std::span<const std::int32_t> copies_E) {
    clear();
    if (!pack_heaviest_first(copies_E)) {
        clear();
        pack_in_turn(copies_E);
    }
    settle();
}

// Work out what every replica costs and every rank bears.
void Layout::settle() {
    std::fill(load_.begin(), load_.end(), 0);
    for (std::int32_t slot = 0; slot < slots(); ++slot) {
        const std::int32_t held = expert(slot);
        value_[at(slot)] = empty(held) ? 0 : cost(held, copies(held));
        load_[at(rank_of(slot))] += value_[at(slot)];
    }
    sort_ranks();
}

bool Layout::pack_heaviest_first(std::span<const std::int32_t> copies_E) {
    std::vector<std::pair<Cost, std::int32_t>> heaviest;  // (-cost of a replica, expert)
    for (std::int32_t expert = 0; expert < experts_; ++expert) {
        heaviest.emplace_back(-cost(expert, copies_E[at(expert)]), expert);
    }
    std::sort(heaviest.begin(), heaviest.end());
    using Rank = std::pair<Cost, std::int32_t>;
    std::priority_queue<Rank, std::vector<Rank>, std::greater<>> lightest;
    for (std::int32_t rank = 0; rank < ranks_; ++rank) lightest.emplace(0, rank);
    std::vector<std::int32_t> filled_G(at(ranks_));
    std::vector<Rank> passed;
    for (const auto& [minus, expert] : heaviest) {
        for (std::int32_t copy = 0; copy < copies_E[at(expert)]; ++copy) {
            while (!lightest.empty() && !free_of(lightest.top().second, expert)) {
                passed.push_back(lightest.top());
                lightest.pop();
            }
            if (lightest.empty()) {
                // Those left hold this expert: one of them takes something else from a rank that does not.
                if (!make_room(expert, filled_G)) return false;
                lightest = {};
                for (std::int32_t rank = 0; rank < ranks_; ++rank) {
                    filled_G[at(rank)] = 0;
                    Cost load = 0;
                    for (std::int32_t slot = rank * width_; slot < (rank + 1) * width_; ++slot) {
                        const std::int32_t held = expert_[at(slot)];
                        if (empty(held)) continue;
                        ++filled_G[at(rank)];
                        load += cost(held, copies_E[at(held)]);
                    }
                    if (filled_G[at(rank)] < width_) lightest.emplace(load, rank);
                }
                passed.clear();
                continue;
            }
            const auto [load, rank] = lightest.top();
            lightest.pop();
            put(rank * width_ + filled_G[at(rank)], expert);
            if (++filled_G[at(rank)] < width_) passed.emplace_back(load - minus, rank);
            for (const Rank& back : passed) lightest.push(back);
            passed.clear();
        }
    }
    return true;
}

// Put a replica on a full rank that has none, and what was there on one that is not full; what is there is lightest.
bool Layout::make_room(std::int32_t expert, std::span<const std::int32_t> filled_G) {
    for (std::int32_t rank = 0; rank < ranks_; ++rank) {
        if (filled_G[at(rank)] == width_) continue;
        const std::int32_t free = rank * width_ + filled_G[at(rank)];
        for (std::int32_t slot = slots() - 1; slot >= 0; --slot) {
            const std::int32_t other = expert_[at(slot)];
            const std::int32_t there = rank_of(slot);
            if (empty(other) || !free_of(there, expert) || (apart(rank, there) && !free_of(rank, other))) continue;
            take(slot);
            put(free, other);
            put(slot, expert);
            return true;
        }
    }
    return false;
}

// Experts one after the other onto ranks in turn, neighbours in turn from different units: never two in one unit.
void Layout::pack_in_turn(std::span<const std::int32_t> copies_E) {
    const std::int32_t units = ranks_ / unit_;
    std::int32_t turn = 0;
    for (std::int32_t expert = 0; expert < experts_; ++expert) {
        for (std::int32_t copy = 0; copy < copies_E[at(expert)]; ++copy, ++turn) {
            const std::int32_t in_row = turn % ranks_;
            const std::int32_t rank = in_row % units * unit_ + in_row / units;
            put(rank * width_ + turn / ranks_, expert);
        }
    }
}

}  // namespace fourlane::balance
