#include "routes.hpp"

#include <algorithm>
#include <unordered_map>

namespace fourlane::fabric {

Routes::Routes(const FabricScenario& scenario) : in_(&scenario) {
    for (const std::int32_t leaf : scenario.leaf_index) leaves_ = std::max(leaves_, static_cast<std::uint32_t>(leaf + 1));
    std::uint32_t switches = 0;
    for (const std::int32_t one : scenario.switch_index) switches = std::max(switches, static_cast<std::uint32_t>(one + 1));
    cells_ = static_cast<std::size_t>(switches) * leaves_;
}

void Routes::enter(std::size_t epoch) {
    const auto table = static_cast<std::size_t>(in_->route_table[epoch]);
    if (table != table_) read_table(table);
    const auto up = in_->epoch_port_up.subspan(epoch * in_->port_node.size(), in_->port_node.size());
    live_.clear();
    live_ports_.clear();
    for (const List list : lists_) {
        const auto first = static_cast<std::uint32_t>(live_ports_.size());
        for (std::uint32_t i = 0; i < list.count; ++i) {
            const std::uint32_t port = ports_[list.first + i];
            if (up[port] != 0) live_ports_.push_back(port);
        }
        live_.push_back({first, static_cast<std::uint32_t>(live_ports_.size()) - first});
    }
}

void Routes::read_table(std::size_t table) {
    table_ = table;
    const auto first = in_->route_first.subspan(table * (cells_ + 1), cells_ + 1);
    std::unordered_map<std::uint64_t, std::vector<std::uint32_t>> known;  // by first port and length
    entries_.resize(cells_);
    lists_.assign(1, {0, 0});
    ports_.clear();
    for (std::size_t cell = 0; cell < cells_; ++cell) {
        const auto list = in_->route_ports.subspan(static_cast<std::size_t>(first[cell]),
                                                   static_cast<std::size_t>(first[cell + 1] - first[cell]));
        entries_[cell] = 0;
        if (list.empty()) continue;
        auto& alike = known[(static_cast<std::uint64_t>(list.front()) << 32) | list.size()];
        const auto same = std::ranges::find_if(alike, [&](std::uint32_t other) {
            return std::equal(list.begin(), list.end(), ports_.begin() + lists_[other].first,
                              [](std::int32_t a, std::uint32_t b) { return static_cast<std::uint32_t>(a) == b; });
        });
        if (same != alike.end()) {
            entries_[cell] = *same;
            continue;
        }
        entries_[cell] = static_cast<std::uint32_t>(lists_.size());
        alike.push_back(entries_[cell]);
        lists_.push_back({static_cast<std::uint32_t>(ports_.size()), static_cast<std::uint32_t>(list.size())});
        for (const std::int32_t port : list) ports_.push_back(static_cast<std::uint32_t>(port));
    }
}

}  // namespace fourlane::fabric
