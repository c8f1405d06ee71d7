// What flows share: links, and which of them each flow takes.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "../fabric/core.hpp"
#include "../fabric/routes.hpp"

namespace fourlane::flow_level {

inline constexpr std::uint32_t kNone = ~0U;

// Rows of different lengths, one after the other.
template <typename T>
struct Rows {
    std::vector<std::uint32_t> first{0};
    std::vector<T> values;

    std::size_t size() const { return first.size() - 1; }
    std::span<const T> operator[](std::size_t row) const {
        return {values.data() + first[row], first[row + 1] - first[row]};
    }
    void end_row() { first.push_back(static_cast<std::uint32_t>(values.size())); }
};

// Part of a spread flow on a link.
struct Part {
    std::uint32_t link;
    float share;
};

// Links are ports and, behind them, trunks: the ports among which a switch spreads adaptively, as one link of their
// joint rate. A flow takes its own links, and those of its spread: what all flows between two leaves that are routed
// packet by packet take in common, in parts.
//
// A flow's own links are, in this order: the port it leaves its host by, ports and trunks on a path of its own, the
// port to its destination; then two ports that its acknowledgements take: from the destination, and to the source.
class Network {
public:
    Network(const FabricScenario& scenario, std::size_t epoch);

    const FabricScenario& scenario() const { return in_; }
    std::size_t flows() const { return own.size(); }
    std::size_t links() const { return capacity.size(); }
    std::size_t ports() const { return in_.port_node.size(); }
    bool is_gate(std::uint32_t flow) const { return wire[flow] == 0; }

    // How much of a link's rate a flow takes for a byte a second of its own, by the link's place in its row.
    double use(std::uint32_t flow, std::size_t place, std::size_t links) const {
        if (place == 0) return source_use[flow];
        return place + kAckLinks < links ? 1.0 : ack_use[flow];
    }

    static constexpr std::size_t kAckLinks = 2;
    static constexpr std::size_t kLeastLinks = 4;  // of a flow that is on no link between switches, or is spread

    // What is on each queue of each port, [P, Q], from what is on that of each link: a trunk's is spread over its ports.
    // `seconds`: in which it is carried; 1 for bytes a second.
    std::vector<double> on_ports(const std::vector<double>& load, double seconds) const;

    // In what parts the flows of a spread take its links where so much of each port is taken by others, in the order of
    // its row. Adaptive routing leaves ports alone that are full, and those that lead to full ones: pauses tell it.
    void respread(std::uint32_t spread, std::span<const double> taken, std::vector<float>& shares) const;
    bool any_adaptive() const { return !members_.empty(); }

    std::vector<double> capacity;        // [links], bytes a second
    std::vector<std::uint32_t> shown_as; // [links], a port that stands for the link
    Rows<std::uint32_t> own;             // links of flows
    std::vector<std::uint32_t> spread;   // of each flow, or kNone
    Rows<Part> spreads;
    std::vector<double> wire;            // [F], bytes on the wire
    std::vector<double> source_use, ack_use;
    std::vector<double> there, back;     // [F], seconds beside the bytes: to deliver, and for the acknowledgement
    std::vector<std::uint8_t> queue;     // [F]

private:
    // What a path costs beside its bandwidth. A packet's last bit waits at every switch that does not cut through.
    struct Way {
        double fixed = 0;        // seconds in cables and switches
        double pace = 0;         // seconds a byte of a packet, behind the first link
        double first_pace = 0;
    };
    struct Spread {
        std::uint32_t number;
        Way way;
    };
    struct Ends {
        std::uint32_t from, leaf;
        bool adaptive;
    };
    using Room = std::unordered_map<std::uint32_t, double>;  // what a switch can still send to a leaf

    void measure_links();
    void measure_flow(std::uint32_t flow);
    void find_spreads();
    void find_paths();
    void lay(std::uint32_t flow);
    const Spread& spread_between(std::uint32_t from, std::uint32_t leaf, fabric::Routing routing);
    template <typename Weight, typename Tell>
    void spread_out(const Ends& ends, const Weight& weight, const Tell& tell) const;
    Way first_way(const Ends& ends) const;
    double room(std::uint32_t node, std::uint32_t leaf, std::span<const double> taken, Room& known) const;
    double room_by(std::uint32_t port, std::uint32_t leaf, std::span<const double> taken, Room& known) const;
    std::uint32_t trunk_of(std::span<const std::uint32_t> ports);
    void index_trunks();
    void step(Way& way, std::uint32_t port, bool first) const;
    std::span<const std::uint32_t> towards(std::uint32_t node, std::uint32_t leaf) const;
    std::uint32_t choose(std::span<const std::uint32_t> ports, std::uint32_t node, std::uint32_t flow) const;
    std::uint32_t node_behind(std::uint32_t port) const;
    std::uint32_t peer(std::uint32_t port) const { return static_cast<std::uint32_t>(in_.port_peer[port]); }
    fabric::Routing routing(std::uint32_t flow) const;

    FabricScenario in_;  // views only
    fabric::Routes routes_;
    fabric::Column<std::uint8_t> traffic_class_;
    fabric::Column<std::uint32_t> pin_;
    std::unordered_map<std::uint64_t, std::uint32_t> trunks_;  // by first port and count
    std::vector<std::vector<std::uint32_t>> members_;          // ports of trunks
    Rows<std::uint32_t> trunks_at_;                            // trunks of each port, once all are known
    std::unordered_map<std::uint64_t, Spread> known_;          // by leaf, leaf and routing
    std::vector<Ends> ends_;                                   // of spreads
    std::vector<Way> way_;                                     // of flows that are spread
};

}  // namespace fourlane::flow_level
