#include "fourlane/fabric.hpp"

#include "fabric/core.hpp"

namespace fourlane {

FabricSimulation::FabricSimulation(const FabricScenario& scenario) : core_(std::make_unique<fabric::Core>(scenario)) {}
FabricSimulation::~FabricSimulation() = default;
FabricSimulation::FabricSimulation(FabricSimulation&&) noexcept = default;
FabricSimulation& FabricSimulation::operator=(FabricSimulation&&) noexcept = default;

bool FabricSimulation::advance(std::int64_t events) { return core_->advance(events); }
FabricProgress FabricSimulation::progress() const { return core_->progress(); }
std::shared_ptr<const FabricResult> FabricSimulation::result() { return core_->result(); }

}  // namespace fourlane
