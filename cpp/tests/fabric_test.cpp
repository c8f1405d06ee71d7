// Tests of the network simulator without Python, so that sanitizers see every path (scripts/sanitize): closed forms on
// a leaf-spine network, and random scenarios over all mechanisms, from fixed seeds. What is right is tested against
// the reference in tests/property/test_fabric_core.py; here runs must end, keep bytes, and read nothing they should not.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fourlane/fabric.hpp"

namespace {

using fourlane::FabricResult;
using fourlane::FabricScenario;
using fourlane::FabricSimulation;

int failures = 0;

void expect(bool condition, const char* what) {
    if (condition) return;
    ++failures;
    std::printf("FAILED: %s\n", what);
}

// The arrays of a scenario, and the views a simulation takes of them.
struct Network {
    std::vector<std::uint8_t> node_kind, node_tier, node_cut_through;
    std::vector<std::int64_t> node_latency, node_shared;
    std::vector<std::int32_t> node_first_port, leaf_index, switch_index, port_node, port_peer;
    std::vector<std::int64_t> pace, propagation, headroom, tx_latency, rx_latency, gap;
    std::vector<std::int64_t> epoch_time{0};
    std::vector<std::uint8_t> epoch_port_up;
    std::vector<std::int32_t> route_table{0}, route_ports;
    std::vector<std::int64_t> route_first;
    std::vector<std::int64_t> weight{4160}, cap{0}, alpha{65536}, reserved{0}, kmin{-1}, kmax{0}, pmax{0};
    std::vector<std::uint8_t> lossless{1}, service{0};
    std::vector<std::uint8_t> queue{0}, ack_queue{0}, cnp_queue{0}, routing{4}, transport{1}, congestion{0}, trims{0}, marks{0};
    std::vector<std::int64_t> window{0}, rto{0};
    std::vector<std::int32_t> ack_every{1}, slots{1};
    std::vector<std::int32_t> source, target;
    std::vector<std::int64_t> size, message{0}, start{0}, delay{0}, after_first{0};
    std::vector<std::uint8_t> traffic_class{0};
    std::vector<std::uint32_t> hash, back_hash, pin{0};
    std::vector<std::int32_t> after;
    std::vector<std::uint32_t> tier_seed = std::vector<std::uint32_t>(8, 7);
    std::vector<std::int32_t> sample_ports;
    FabricScenario plain;  // scalars

    int hosts = 0;

    std::int32_t port_of(int host) const { return node_first_port[static_cast<std::size_t>(host)]; }

    void add_flow(int from, int to, std::int64_t bytes) {
        source.push_back(bytes == 0 ? -1 : port_of(from));
        target.push_back(bytes == 0 ? -1 : port_of(to));
        size.push_back(bytes);
        hash.push_back(static_cast<std::uint32_t>(hash.size() * 2654435761U));
        back_hash.push_back(static_cast<std::uint32_t>(hash.size() * 2246822519U));
    }

    FabricScenario view() const {
        FabricScenario in = plain;
        in.node_kind = node_kind, in.node_tier = node_tier, in.node_cut_through = node_cut_through;
        in.node_latency = node_latency, in.node_shared = node_shared, in.node_first_port = node_first_port;
        in.leaf_index = leaf_index, in.switch_index = switch_index, in.port_node = port_node, in.port_peer = port_peer;
        in.port_ps_q16 = pace, in.port_prop = propagation, in.port_headroom = headroom;
        in.port_tx_latency = tx_latency, in.port_rx_latency = rx_latency, in.port_message_gap = gap;
        in.epoch_time = epoch_time, in.epoch_port_up = epoch_port_up;
        in.route_table = route_table, in.route_first = route_first, in.route_ports = route_ports;
        in.queue_weight = weight, in.queue_cap_q16 = cap, in.queue_alpha_q16 = alpha, in.queue_reserved = reserved;
        in.queue_kmin = kmin, in.queue_kmax = kmax, in.queue_pmax_q32 = pmax;
        in.queue_lossless = lossless, in.queue_service = service;
        in.class_queue = queue, in.class_ack_queue = ack_queue, in.class_cnp_queue = cnp_queue;
        in.class_routing = routing, in.class_transport = transport, in.class_cc = congestion;
        in.class_trim = trims, in.class_ecn = marks, in.class_window = window, in.class_rto = rto;
        in.class_ack_every = ack_every, in.class_cts_slots = slots;
        in.flow_src_port = source, in.flow_dst_port = target, in.flow_size = size, in.flow_message = message;
        in.flow_start = start, in.flow_delay = delay, in.flow_after_first = after_first, in.flow_after = after;
        in.flow_class = traffic_class, in.flow_hash = hash, in.flow_back_hash = back_hash, in.flow_pin = pin;
        in.tier_seed = tier_seed, in.sample_ports = sample_ports;
        return in;
    }
};

// Hosts first, then leaves, then spines; a leaf's ports are those to its hosts, then those to all spines.
Network leaf_spine(int leaves, int hosts_per_leaf, int spines) {
    Network net;
    net.hosts = leaves * hosts_per_leaf;
    const int nodes = net.hosts + leaves + spines;
    const auto leaf_port = [&](int leaf, int i) { return net.hosts + leaf * (hosts_per_leaf + spines) + i; };
    const auto spine_port = [&](int spine, int i) { return leaf_port(leaves, 0) + spine * leaves + i; };
    const auto add_port = [&](int node, int peer) {
        net.port_node.push_back(node);
        net.port_peer.push_back(peer);
    };
    for (int n = 0; n < nodes; ++n) {
        const bool host = n < net.hosts;
        const bool leaf = !host && n < net.hosts + leaves;
        net.node_kind.push_back(host ? 0 : 1);
        net.node_tier.push_back(host ? 0 : leaf ? 1 : 2);
        net.leaf_index.push_back(leaf ? n - net.hosts : -1);
        net.switch_index.push_back(host ? -1 : n - net.hosts);
        net.node_first_port.push_back(static_cast<std::int32_t>(net.port_node.size()));
        const int number = leaf ? n - net.hosts : n - net.hosts - leaves;
        if (host) add_port(n, leaf_port(n / hosts_per_leaf, n % hosts_per_leaf));
        for (int i = 0; leaf && i < hosts_per_leaf; ++i) add_port(n, number * hosts_per_leaf + i);
        for (int i = 0; leaf && i < spines; ++i) add_port(n, spine_port(i, number));
        for (int i = 0; !host && !leaf && i < leaves; ++i) add_port(n, leaf_port(i, hosts_per_leaf + number));
    }
    const std::size_t ports = net.port_node.size();
    net.node_first_port.push_back(static_cast<std::int32_t>(ports));
    net.node_cut_through.assign(static_cast<std::size_t>(nodes), 0);
    net.node_latency.assign(static_cast<std::size_t>(nodes), 500'000);
    net.node_shared.assign(static_cast<std::size_t>(nodes), 64 << 20);
    net.pace.assign(ports, 20 << 16);
    net.propagation.assign(ports, 100'000);
    net.headroom.assign(ports, 100'000);
    net.tx_latency.assign(ports, 0), net.rx_latency.assign(ports, 0), net.gap.assign(ports, 0);
    net.epoch_port_up.assign(ports, 1);
    net.route_first.push_back(0);
    for (int s = 0; s < leaves + spines; ++s) {
        for (int leaf = 0; leaf < leaves; ++leaf) {
            if (s >= leaves) net.route_ports.push_back(spine_port(s - leaves, leaf));
            for (int i = 0; s < leaves && s != leaf && i < spines; ++i) net.route_ports.push_back(leaf_port(s, hosts_per_leaf + i));
            net.route_first.push_back(static_cast<std::int64_t>(net.route_ports.size()));
        }
    }
    net.plain.mtu = 4096, net.plain.header = net.plain.ack_wire = net.plain.trim_wire = 64;
    net.plain.ar_levels = std::int64_t{1} << 62, net.plain.max_events = net.plain.max_time = std::int64_t{1} << 62;
    return net;
}

FabricResult run(const Network& net, std::int64_t step) {
    FabricSimulation simulation(net.view());
    while (!simulation.advance(step)) {
    }
    return *simulation.result();
}

void lossless_flows_meet_their_closed_forms() {
    const std::vector<std::pair<int, std::int64_t>> cases{{8, 4096}, {8, 1 << 20}, {71, 65'536}, {71, 262'144}};
    const std::vector<std::int64_t> finish{4'137'920, 25'353'920, 89'251'520, 344'841'920};
    for (std::size_t i = 0; i < cases.size(); ++i) {
        Network net = leaf_spine(16, 8, 8);
        for (int from = 8; from <= cases[i].first; ++from) net.add_flow(from, 0, cases[i].second);
        const FabricResult found = run(net, 1 << 20);
        expect(found.status == "done" && std::ranges::max(found.flow_finish) == finish[i], "a closed form");
    }
}

void a_large_scenario_is_done() {
    Network net = leaf_spine(16, 8, 8);
    for (int step = 1; step < net.hosts; ++step) {
        for (int from = 0; from < net.hosts; ++from) net.add_flow(from, (from + step) % net.hosts, 5000);
    }
    const FabricResult found = run(net, 1 << 20);
    expect(found.status == "done" && found.delivered_payload == 128 * 127 * 5000, "an all-to-all");
}

void two_simulations_run_in_turn_without_knowing_of_each_other() {
    Network net = leaf_spine(2, 4, 2);
    for (int from = 0; from < 8; ++from) net.add_flow(from, (from + 3) % 8, 100'000);
    FabricSimulation one(net.view()), other(net.view());
    bool ended = false;
    while (!ended) {
        ended = one.advance(7);
        other.advance(7);
    }
    expect(one.result()->flow_finish == other.result()->flow_finish, "two simulations at once");
}

// A scenario of anything at all. Values come from short lists, so that events meet at one instant.
class Dice {
public:
    explicit Dice(std::uint32_t seed) : generator_(seed) {}
    std::int64_t one_of(const std::vector<std::int64_t>& values) { return values[generator_() % values.size()]; }
    template <typename T>
    void fill(std::vector<T>& to, std::size_t count, const std::vector<std::int64_t>& values) {
        to.clear();
        for (std::size_t i = 0; i < count; ++i) to.push_back(static_cast<T>(one_of(values)));
    }

private:
    std::mt19937 generator_;
};

void roll_lanes(Dice& dice, Network& net) {
    const std::size_t queues = 3, classes = 3;
    dice.fill(net.weight, queues, {0, 4160, 12'481});
    dice.fill(net.cap, queues, {0, 0, 65'536, 200'001});
    dice.fill(net.alpha, queues, {65'536, 8 << 16, 8192, 0});
    dice.fill(net.reserved, queues, {0, 4160, 10'000});
    dice.fill(net.lossless, queues, {0, 1});
    dice.fill(net.service, queues, {0, 1});
    dice.fill(net.kmin, queues, {-1, 0, 4160});
    dice.fill(net.kmax, queues, {4160, 30'000});
    dice.fill(net.pmax, queues, {std::int64_t{1} << 32, 1 << 30, 0});
    for (auto* queue : {&net.queue, &net.ack_queue, &net.cnp_queue}) dice.fill(*queue, classes, {0, 1, 2});
    dice.fill(net.routing, classes, {0, 1, 2, 3, 4, 5});
    dice.fill(net.transport, classes, {0, 1, 2});
    dice.fill(net.congestion, classes, {0, 1, 2});
    dice.fill(net.trims, classes, {0, 1});
    dice.fill(net.marks, classes, {0, 1});
    dice.fill(net.window, classes, {0, 1, 9000, 20'000});
    dice.fill(net.rto, classes, {0, 3'000'000, 20'000'000});
    dice.fill(net.slots, classes, {1, 2});
    net.ack_every.assign(classes, 1);
    for (std::size_t c = 0; c < classes; ++c) {
        if (net.transport[c] == 0) net.ack_every[c] = static_cast<std::int32_t>(dice.one_of({1, 2, 5}));
    }
}

void roll_network(Dice& dice, Network& net) {
    const std::size_t ports = net.port_node.size();
    for (std::size_t n = 0; n < net.node_kind.size(); ++n) {
        if (net.node_kind[n] == 0) continue;
        net.node_cut_through[n] = static_cast<std::uint8_t>(dice.one_of({0, 1}));
        net.node_shared[n] = dice.one_of({1 << 30, 60'000, 20'000, 0});
        net.node_latency[n] = dice.one_of({500'000, 0});
    }
    dice.fill(net.headroom, ports, {1 << 20, 20'000, 0});
    dice.fill(net.propagation, ports, {100'000, 0, 1});
    for (std::size_t epoch = 1; epoch < 4; ++epoch) {
        net.epoch_time.push_back(static_cast<std::int64_t>(epoch) * 400'000);
        net.route_table.push_back(0);
        for (std::size_t p = 0; p < ports; ++p) net.epoch_port_up.push_back(dice.one_of({1, 1, 1, 1, 1, 1, 0}) != 0);
    }
    FabricScenario& in = net.plain;
    in.seed = static_cast<std::uint64_t>(dice.one_of({0, 1, 99}));
    in.flowlet_gap = dice.one_of({0, 83'200}), in.flowlet_entries = dice.one_of({1, 7});
    in.ar_quantum = dice.one_of({1, 4160}), in.ar_levels = dice.one_of({1 << 20, 4}), in.ar_staleness = dice.one_of({0, 100'000});
    in.pfc_response = dice.one_of({0, 48'320}), in.xon_offset = dice.one_of({0, 3000});
    in.watchdog_detection = dice.one_of({0, 300'000}), in.watchdog_restoration = dice.one_of({0, 500'000});
    in.watchdog_drop = dice.one_of({0, 1}), in.sample_interval = dice.one_of({0, 700'000});
    in.trim_queue = dice.one_of({0, 1, 2});
    in.max_events = 40'000, in.max_time = dice.one_of({400'000'000, 5'000'000});
    in.dcqcn = {1.0 / 256, 1, 300'001, 500'000, 0, 0.5, 300'000, 5000, 1, 5e9, 20e9, 1e8, dice.one_of({0, 1})};
    net.sample_ports = {0, 3};
}

void random_scenarios_end_and_keep_their_bytes() {
    for (std::uint32_t seed = 0; seed < 400; ++seed) {
        Dice dice(seed);
        Network net = leaf_spine(2, 3, 2);
        roll_lanes(dice, net);
        roll_network(dice, net);
        net.after_first = {0};
        const int flows = 12;
        for (int f = 0; f < flows; ++f) {
            const auto from = static_cast<int>(dice.one_of({0, 1, 2, 3, 4, 5}));
            net.add_flow(from, (from + static_cast<int>(dice.one_of({1, 2, 4}))) % 6, dice.one_of({60'000, 4096, 0, 1, 300'000}));
            if (f + 1 < flows && dice.one_of({0, 0, 1}) != 0) net.after.push_back(f + 1);
            net.after_first.push_back(static_cast<std::int64_t>(net.after.size()));
        }
        dice.fill(net.traffic_class, flows, {0, 1, 2});
        dice.fill(net.message, flows, {0, 1000, 5000});
        dice.fill(net.start, flows, {0, 83'200, 1'000'000});
        dice.fill(net.pin, flows, {0, 257, 0x7fffffff});
        const FabricResult found = run(net, 1 + seed * 13);
        expect(found.status != "running", "a random scenario ends");
        expect(found.wire_bytes_sent == found.wire_bytes_delivered + found.wire_bytes_dropped + found.wire_bytes_queued,
               "bytes sent are delivered, dropped or under way");
    }
}

void faulty_arrays_are_refused_by_name() {
    const auto refused = [](const char* name, const auto& change) {
        Network net = leaf_spine(2, 2, 1);
        net.add_flow(0, 3, 10'000);
        change(net);
        try {
            FabricSimulation simulation(net.view());
        } catch (const std::invalid_argument& fault) {
            expect(std::string(fault.what()).starts_with(name), name);
            return;
        }
        expect(false, name);
    };
    refused("port_peer", [](Network& net) { net.port_peer[0] = 99; });
    refused("route_ports", [](Network& net) { net.route_ports[0] = 0; });
    refused("route_first", [](Network& net) { net.route_first.pop_back(); });
    refused("flow_src_port", [](Network& net) { net.source[0] = -1; });
    refused("flow_dst_port", [](Network& net) { net.target[0] = 5; });
    refused("flow_size", [](Network& net) { net.size[0] = -1; });
    refused("flow_after", [](Network& net) { net.after_first = {0, 1}, net.after = {7}; });
    refused("class_queue", [](Network& net) { net.queue[0] = 1; });
    refused("queue_weight", [](Network& net) { net.weight[0] = 100; });
    refused("leaf_index", [](Network& net) { net.leaf_index[0] = 1 << 30; });
    refused("epoch_port_up", [](Network& net) { net.epoch_port_up.pop_back(); });
    refused("sample_ports", [](Network& net) { net.sample_ports = {-1}; });
    refused("mtu", [](Network& net) { net.plain.mtu = 0; });
}

}  // namespace

int main() {
    lossless_flows_meet_their_closed_forms();
    a_large_scenario_is_done();
    two_simulations_run_in_turn_without_knowing_of_each_other();
    random_scenarios_end_and_keep_their_bytes();
    faulty_arrays_are_refused_by_name();
    std::printf(failures == 0 ? "all passed\n" : "%d failed\n", failures);
    return failures == 0 ? 0 : 1;
}
