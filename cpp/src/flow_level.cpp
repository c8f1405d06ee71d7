#include "fourlane/flow_level.hpp"

#include <numeric>

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

FlowRates FlowLevel::rates() const {
    std::vector<std::uint32_t> all;
    for (std::uint32_t f = 0; f < network_->flows(); ++f) {
        if (!network_->is_gate(f)) all.push_back(f);
    }
    flow_level::Sharing sharing(*network_);
    sharing.settle(all);
    FlowRates found{sharing.rate(), std::vector<std::int32_t>(network_->flows(), -1), {}};
    for (const std::uint32_t f : all) {
        const std::uint32_t link = sharing.bottleneck()[f];
        if (link != flow_level::kNone) found.bottleneck[f] = static_cast<std::int32_t>(network_->shown_as[link]);
    }
    found.port_rate = network_->on_ports(sharing.load(sharing.rate(), true));
    return found;
}

bool FlowLevel::advance() { return progression_->advance(); }
std::int64_t FlowLevel::flows_done() const { return progression_->done(); }
FlowTimes FlowLevel::times() const { return progression_->times(); }

}  // namespace fourlane
