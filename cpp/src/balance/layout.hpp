// One layer's placement while it is searched: who is in which slot, what that costs, and the ranks in order of load.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "fourlane/balance.hpp"

namespace fourlane::balance {

using Cost = std::int64_t;

// An empty slot is held by an expert behind the last one, which costs nothing and may be many times anywhere.
class Layout {
public:
    explicit Layout(const PlacementTask& task);

    // Fill the slots with so many replicas of each expert: heaviest first, each to the lightest rank that may take it.
    void pack(std::span<const std::int32_t> copies_E);
    // Take over a table of experts in slots, -1 where empty; replicas of an expert must be apart.
    void load(std::span<const std::int32_t> expert_P);
    // Write such a table.
    void store(std::span<std::int32_t> expert_P) const;

    void exchange(std::int32_t slot, std::int32_t other);
    // Put another expert's new replica where one of at least two, or nothing, is; what replicas of both cost changes.
    void replace(std::int32_t slot, std::int32_t expert);

    std::int32_t experts() const { return experts_; }
    std::int32_t ranks() const { return ranks_; }
    std::int32_t width() const { return width_; }
    std::int32_t slots() const { return ranks_ * width_; }
    std::int32_t expert(std::int32_t slot) const { return expert_[static_cast<std::size_t>(slot)]; }
    Cost value(std::int32_t slot) const { return value_[static_cast<std::size_t>(slot)]; }
    Cost load_of(std::int32_t rank) const { return load_[static_cast<std::size_t>(rank)]; }
    std::int32_t rank_of(std::int32_t slot) const { return slot / width_; }
    std::int32_t copies(std::int32_t expert) const { return copies_[static_cast<std::size_t>(expert)]; }
    std::int32_t most() const { return most_; }
    bool empty(std::int32_t expert) const { return expert == experts_; }
    // What a replica would cost with so many of them.
    Cost cost(std::int32_t expert, std::int32_t copies) const { return empty(expert) ? 0 : cost_(expert, copies); }
    std::span<const std::int32_t> slots_of(std::int32_t expert) const {
        return {where_.data() + static_cast<std::size_t>(expert) * static_cast<std::size_t>(most_),
                static_cast<std::size_t>(copies(expert))};
    }
    // Ranks by load, the lightest first; of equals the lowest.
    std::span<const std::int32_t> by_load() const { return order_; }
    std::int32_t fullest() const { return order_.back(); }
    Cost greatest() const { return load_of(fullest()); }
    // Tell whether a replica may be added to the ranks kept apart from others together with this one.
    bool free_of(std::int32_t rank, std::int32_t expert) const {
        return empty(expert) || holds_[holds_at(rank, expert)] == 0;
    }
    bool apart(std::int32_t rank, std::int32_t other) const { return rank / unit_ != other / unit_; }
    bool has(std::int32_t rank, std::int32_t expert) const;
    // Tell whether the experts in two slots may change places.
    bool may_exchange(std::int32_t slot, std::int32_t other) const;

private:
    std::size_t holds_at(std::int32_t rank, std::int32_t expert) const {
        return static_cast<std::size_t>(rank / unit_) * static_cast<std::size_t>(experts_) + static_cast<std::size_t>(expert);
    }
    void put(std::int32_t slot, std::int32_t expert);
    void take(std::int32_t slot);
    void revalue(std::int32_t expert);
    void reorder(std::int32_t rank);
    void sort_ranks();
    void settle();
    void clear();
    bool pack_heaviest_first(std::span<const std::int32_t> copies_E);
    bool make_room(std::int32_t expert, std::span<const std::int32_t> filled_G);
    void pack_in_turn(std::span<const std::int32_t> copies_E);

    CostView cost_;
    std::int32_t experts_, ranks_, width_, most_, unit_;
    std::vector<std::int32_t> expert_;   // by slot
    std::vector<Cost> value_;            // by slot
    std::vector<Cost> load_;             // by rank
    std::vector<std::int32_t> copies_;   // by expert
    std::vector<std::int32_t> where_;    // slots of an expert's replicas, most_ places each, in no order
    std::vector<std::int32_t> nth_;      // by slot: its place among its expert's
    std::vector<std::uint8_t> holds_;    // by unit of ranks and expert
    std::vector<std::int32_t> order_;    // ranks by load
    std::vector<std::int32_t> place_;    // by rank: its place in order_
};

}  // namespace fourlane::balance
