// Flows over time: rates hold until some begin or end.
#pragma once

#include <cstdint>
#include <functional>
#include <queue>
#include <utility>
#include <vector>

#include "fourlane/flow_level.hpp"
#include "network.hpp"
#include "sharing.hpp"

namespace fourlane::flow_level {

class Progression {
public:
    Progression(const Network& network, double tolerance);

    bool advance();
    std::int64_t done() const { return done_; }
    FlowTimes times() const;

private:
    using Start = std::pair<double, std::uint32_t>;

    void set_up_starts();
    void begin_due();
    void begin(std::uint32_t flow, double when);
    void deliver(std::uint32_t flow, double when);
    double horizon() const;
    void run_until(double until);

    const Network& net_;
    Sharing sharing_;
    double tolerance_;
    double now_ = 0;
    std::int64_t rounds_ = 0, done_ = 0;
    std::priority_queue<Start, std::vector<Start>, std::greater<>> starts_;
    std::vector<std::uint32_t> under_way_;
    std::vector<double> left_;        // [F], bytes on the wire
    std::vector<double> not_before_;  // [F]
    std::vector<std::uint32_t> waits_for_;
    std::vector<double> started_, delivered_, finished_;
};

}  // namespace fourlane::flow_level
