// Networks at flow level: every flow has a rate, which changes only when flows begin or end. No packets, no queues.
//
// Rates are weighted max-min fair over the same arrays that the packet simulator reads: the same topology, routing tables,
// hashes, queues and classes. At each port strict queues take what they can up to their caps, the highest before the
// others; weighted queues share what is left by their weights, and what one does not use goes to the others. Within a
// queue, which serves what comes first, flows share by what arrives: a host's port shared among its flows. What packets
// do beyond that - waiting, pauses, marks - is left out.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "fourlane/fabric.hpp"

namespace fourlane {

namespace flow_level {
class Network;
class Progression;
}

// Arrays are [F] and [P, Q]; times in seconds from the scenario's start, amounts in bytes on the wire.
struct FlowRates {
    std::vector<double> rate;              // bytes a second; 0: starved by strict queues; a gate has none
    std::vector<std::int32_t> bottleneck;  // the port that holds a flow down, -1 for a gate
    std::vector<double> port_rate;         // bytes a second
};

struct FlowTimes {
    std::vector<double> started, delivered, finished;  // negative: not yet
    std::vector<double> port_bytes;
    std::int64_t rounds = 0;
    double now = 0;
};

class FlowLevel {
public:
    // `epoch`: which state of links and routing tables holds. `tolerance`: for what share of the time of the shortest
    // flow under way rates hold at the least; 0 works out every change of rates.
    FlowLevel(const FabricScenario& scenario, std::size_t epoch, double tolerance);
    ~FlowLevel();
    FlowLevel(const FlowLevel&) = delete;
    FlowLevel& operator=(const FlowLevel&) = delete;

    // Rates if these flows were under way at once, whatever they wait for. The rates of others are 0.
    FlowRates rates(std::span<const std::uint32_t> flows) const;

    // Go on to where rates change next; true once all flows have ended, or none that is left can move.
    bool advance();

    std::int64_t flows_done() const;
    FlowTimes times() const;

private:
    std::unique_ptr<flow_level::Network> network_;
    std::unique_ptr<flow_level::Progression> progression_;
};

}  // namespace fourlane
