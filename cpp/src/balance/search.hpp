// Local search: bring down the fullest rank of a layout, one change after the other.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "layout.hpp"

namespace fourlane::balance {

// What ranks held before: what else they hold now they had to receive.
class Origin {
public:
    Origin(const PlacementTask& task);

    // Return 1 if a rank must receive an expert.
    std::int32_t received(std::int32_t rank, std::int32_t expert) const {
        return expert < experts_ && held_[static_cast<std::size_t>(rank) * static_cast<std::size_t>(experts_) +
                                          static_cast<std::size_t>(expert)] == 0;
    }
    std::int32_t received(std::span<const std::int32_t> expert_P) const;

private:
    std::int32_t experts_, width_;
    std::vector<std::uint8_t> held_;
};

class Search {
public:
    Search(Layout& layout, std::int64_t steps) : layout_(layout), steps_(steps) {}
    // Make only changes by which ranks receive no more experts in all.
    Search(Layout& layout, std::int64_t steps, const Origin& origin, std::int32_t moves)
        : layout_(layout), steps_(steps), origin_(&origin), moves_(moves) {}

    // Make changes that lower the fullest rank and raise no other to it, until there are none or it is good enough.
    void descend(Cost good_enough);
    std::int64_t steps_left() const { return steps_; }

private:
    struct Exchange {
        std::int32_t slot = -1, other = -1, slot_too = -1, other_too = -1;
    };
    struct Replacement {
        std::int32_t slot = -1, expert = -1;
    };

    bool exchange_one();
    bool exchange_two();
    bool replace_one();
    void weigh(std::int32_t slot, std::int32_t expert, Cost& peak, Replacement& best);
    Cost peak_after(std::int32_t slot, std::int32_t expert, Cost limit) const;
    // How many more experts ranks receive if an expert takes the place of what is in a slot.
    std::int32_t more_moves(std::int32_t slot, std::int32_t expert) const {
        if (origin_ == nullptr) return 0;
        const std::int32_t rank = layout_.rank_of(slot);
        return origin_->received(rank, expert) - origin_->received(rank, layout_.expert(slot));
    }
    std::int32_t exchange_moves(std::int32_t slot, std::int32_t other) const {
        if (origin_ == nullptr || layout_.rank_of(slot) == layout_.rank_of(other)) return 0;
        return more_moves(slot, layout_.expert(other)) + more_moves(other, layout_.expert(slot));
    }

    Layout& layout_;
    std::int64_t steps_;
    const Origin* origin_ = nullptr;
    std::int32_t moves_ = 0;
};

}  // namespace fourlane::balance
