// A layer's placement while it is designed for splitting: the expert in each slot, the slots of each expert.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

namespace fourlane::balance {

class SplitLayout {
public:
    static constexpr std::int32_t kEmpty = -1;

    // Experts may come to have up to `most` replicas.
    SplitLayout(std::span<const std::int32_t> slot_P, std::int32_t ranks, std::int32_t experts, std::int32_t most)
        : ranks_(ranks),
          held_(static_cast<std::int32_t>(slot_P.size()) / ranks),
          most_(most),
          expert_(slot_P.size(), kEmpty),
          rank_of_(slot_P.size()),
          copies_(static_cast<std::size_t>(experts)),
          where_(static_cast<std::size_t>(experts) * static_cast<std::size_t>(most)) {
        for (std::int32_t p = 0; p < slots(); ++p) {
            rank_of_[static_cast<std::size_t>(p)] = p / held_;
            put(p, slot_P[static_cast<std::size_t>(p)]);
        }
    }

    std::int32_t slots() const { return static_cast<std::int32_t>(expert_.size()); }
    std::int32_t ranks() const { return ranks_; }
    std::int32_t held() const { return held_; }
    std::int32_t most() const { return most_; }
    std::int32_t experts() const { return static_cast<std::int32_t>(copies_.size()); }
    std::int32_t expert(std::int32_t slot) const { return expert_[static_cast<std::size_t>(slot)]; }
    std::int32_t rank_of(std::int32_t slot) const { return rank_of_[static_cast<std::size_t>(slot)]; }
    std::int32_t copies(std::int32_t expert) const { return copies_[static_cast<std::size_t>(expert)]; }
    std::span<const std::int32_t> slot_P() const { return expert_; }

    // An expert's slots in ascending order.
    std::span<const std::int32_t> slots_of(std::int32_t expert) const {
        return {where_.data() + first_of(expert), static_cast<std::size_t>(copies(expert))};
    }

    // Put another expert, or none, into a slot.
    void put(std::int32_t slot, std::int32_t expert) {
        std::int32_t& held = expert_[static_cast<std::size_t>(slot)];
        if (held != kEmpty) remove(held, slot);
        held = expert;
        if (expert != kEmpty) add(expert, slot);
    }

private:
    std::size_t first_of(std::int32_t expert) const {
        return static_cast<std::size_t>(expert) * static_cast<std::size_t>(most_);
    }

    void add(std::int32_t expert, std::int32_t slot) {
        std::int32_t* slots = where_.data() + first_of(expert);
        std::int32_t place = copies_[static_cast<std::size_t>(expert)]++;
        for (; place > 0 && slots[place - 1] > slot; --place) slots[place] = slots[place - 1];
        slots[place] = slot;
    }

    void remove(std::int32_t expert, std::int32_t slot) {
        std::int32_t* slots = where_.data() + first_of(expert);
        std::int32_t* end = slots + copies_[static_cast<std::size_t>(expert)]--;
        std::int32_t* found = std::find(slots, end, slot);
        std::copy(found + 1, end, found);
    }

    std::int32_t ranks_, held_, most_;
    std::vector<std::int32_t> expert_, rank_of_, copies_, where_;
};

}  // namespace fourlane::balance
