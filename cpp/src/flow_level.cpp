#include "fourlane/flow_level.hpp"

#include <algorithm>
#include <iterator>

#include "flow_level/network.hpp"
#include "flow_level/progression.hpp"
#include "flow_level/sharing.hpp"

namespace fourlane {

namespace {

const FabricScenario& checked(const FabricScenario& scenario) {
    fabric::check(scenario);
    return scenario;
}

}  // namespace

FlowLevel::FlowLevel(const FabricScenario& scenario, std::size_t epoch, double tolerance)
    : network_(std::make_unique<flow_level::Network>(checked(scenario), epoch)),
      progression_(std::make_unique<flow_level::Progression>(*network_, tolerance)) {}

FlowLevel::~FlowLevel() = default;

FlowRates FlowLevel::rates(std::span<const std::uint32_t> flows) const {
    std::vector<std::uint32_t> chosen;
    std::ranges::copy_if(flows, std::back_inserter(chosen), [this](std::uint32_t f) { return !network_->is_gate(f); });
    flow_level::Sharing sharing(*network_);
    sharing.settle(chosen);
    FlowRates found{sharing.rate(), std::vector<std::int32_t>(network_->flows(), -1), {}};
    for (const std::uint32_t f : chosen) {
        const std::uint32_t link = sharing.bottleneck()[f];
        if (link != flow_level::kNone) found.bottleneck[f] = static_cast<std::int32_t>(network_->shown_as[link]);
    }
    found.port_rate = network_->on_ports(sharing.load(sharing.rate(), true), 1.0);
    return found;
}

bool FlowLevel::advance() { return progression_->advance(); }
std::int64_t FlowLevel::flows_done() const { return progression_->done(); }
FlowTimes FlowLevel::times() const { return progression_->times(); }

}  // namespace fourlane
