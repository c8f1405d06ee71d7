// Local search: bring down the fullest rank of a layout, one change after the other.
#pragma once

#include <cstdint>

#include "layout.hpp"

namespace fourlane::balance {

class Search {
public:
    Search(Layout& layout, std::int64_t steps) : layout_(layout), steps_(steps) {}

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

    Layout& layout_;
    std::int64_t steps_;
};

}  // namespace fourlane::balance
