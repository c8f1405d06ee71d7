// Which ports of a switch lead to which leaf: the tables of the scenario with equal lists kept once, and of those only
// the ports that are up.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "fourlane/fabric.hpp"

namespace fourlane::fabric {

class Routes {
public:
    explicit Routes(const FabricScenario& scenario);

    // Use the table and the links of an epoch from now on.
    void enter(std::size_t epoch);

    // `row`: the switch's number times `leaves()`.
    std::span<const std::uint32_t> towards(std::uint32_t row, std::uint32_t leaf) const {
        const List list = live_[entries_[row + leaf]];
        return {live_ports_.data() + list.first, list.count};
    }
    const void* place_of(std::uint32_t row, std::uint32_t leaf) const { return &entries_[row + leaf]; }
    std::uint32_t leaves() const { return leaves_; }
    std::size_t cells() const { return cells_; }  // switches times leaves

private:
    struct List {
        std::uint32_t first;
        std::uint32_t count;
    };

    void read_table(std::size_t table);

    const FabricScenario* in_;
    std::uint32_t leaves_ = 0;
    std::size_t cells_ = 0;                // of a table
    std::size_t table_ = ~std::size_t{0};  // the one in `entries_`
    std::vector<std::uint32_t> entries_;   // list by cell
    std::vector<List> lists_;
    std::vector<std::uint32_t> ports_;
    std::vector<List> live_;
    std::vector<std::uint32_t> live_ports_;
};

}  // namespace fourlane::fabric
