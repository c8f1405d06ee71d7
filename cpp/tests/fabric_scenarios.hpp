// Scenarios for the tests of the packet simulator: arrays that own what FabricScenario views, a small leaf-spine
// network, and random scenarios over everything that the simulator does.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <random>
#include <vector>

#include "fourlane/fabric.hpp"

namespace fourlane::test {

inline constexpr std::int64_t kMicrosecond = 1'000'000;
inline constexpr std::int64_t kNever = std::int64_t{1} << 62;

// The arrays of a scenario; its scalars are those of `scalars`.
struct Arrays {
    std::vector<std::uint8_t> node_kind, node_tier, node_cut_through;
    std::vector<std::int64_t> node_latency, node_shared;
    std::vector<std::int32_t> node_first_port, leaf_index, switch_index;
    std::vector<std::int32_t> port_node, port_peer;
    std::vector<std::int64_t> port_ps_q16, port_prop, port_headroom, port_tx_latency, port_rx_latency, port_message_gap;
    std::vector<std::int64_t> epoch_time;
    std::vector<std::uint8_t> epoch_port_up;
    std::vector<std::int32_t> route_table;
    std::vector<std::int64_t> route_first;
    std::vector<std::int32_t> route_ports;
    std::vector<std::int64_t> queue_weight, queue_cap_q16, queue_alpha_q16, queue_reserved, queue_kmin, queue_kmax;
    std::vector<std::int64_t> queue_pmax_q32;
    std::vector<std::uint8_t> queue_lossless, queue_service;
    std::vector<std::uint8_t> class_queue, class_ack_queue, class_cnp_queue, class_routing, class_transport, class_cc;
    std::vector<std::uint8_t> class_trim, class_ecn;
    std::vector<std::int64_t> class_window, class_rto;
    std::vector<std::int32_t> class_ack_every, class_cts_slots;
    std::vector<std::int32_t> flow_src_port, flow_dst_port;
    std::vector<std::int64_t> flow_size, flow_message, flow_start, flow_delay, flow_after_first;
    std::vector<std::uint8_t> flow_class;
    std::vector<std::uint32_t> flow_hash, flow_back_hash, flow_pin;
    std::vector<std::int32_t> flow_after;
    std::vector<std::uint32_t> tier_seed;
    std::vector<std::int32_t> sample_ports;
    FabricScenario scalars;
};

// Tell `visit` each array: its name, the array and the view of it in `to`.
template <typename Visit>
void visit_arrays(Arrays& from, FabricScenario& to, const Visit& visit) {
    const auto each = [&](const char* name, auto array, auto view) { visit(name, from.*array, to.*view); };
#define FOURLANE_ARRAY(name) each(#name, &Arrays::name, &FabricScenario::name)
    FOURLANE_ARRAY(node_kind), FOURLANE_ARRAY(node_tier), FOURLANE_ARRAY(node_cut_through);
    FOURLANE_ARRAY(node_latency), FOURLANE_ARRAY(node_shared), FOURLANE_ARRAY(node_first_port);
    FOURLANE_ARRAY(leaf_index), FOURLANE_ARRAY(switch_index), FOURLANE_ARRAY(port_node), FOURLANE_ARRAY(port_peer);
    FOURLANE_ARRAY(port_ps_q16), FOURLANE_ARRAY(port_prop), FOURLANE_ARRAY(port_headroom);
    FOURLANE_ARRAY(port_tx_latency), FOURLANE_ARRAY(port_rx_latency), FOURLANE_ARRAY(port_message_gap);
    FOURLANE_ARRAY(epoch_time), FOURLANE_ARRAY(epoch_port_up), FOURLANE_ARRAY(route_table);
    FOURLANE_ARRAY(route_first), FOURLANE_ARRAY(route_ports), FOURLANE_ARRAY(queue_weight);
    FOURLANE_ARRAY(queue_cap_q16), FOURLANE_ARRAY(queue_alpha_q16), FOURLANE_ARRAY(queue_reserved);
    FOURLANE_ARRAY(queue_kmin), FOURLANE_ARRAY(queue_kmax), FOURLANE_ARRAY(queue_pmax_q32);
    FOURLANE_ARRAY(queue_lossless), FOURLANE_ARRAY(queue_service), FOURLANE_ARRAY(class_queue);
    FOURLANE_ARRAY(class_ack_queue), FOURLANE_ARRAY(class_cnp_queue), FOURLANE_ARRAY(class_routing);
    FOURLANE_ARRAY(class_transport), FOURLANE_ARRAY(class_cc), FOURLANE_ARRAY(class_trim), FOURLANE_ARRAY(class_ecn);
    FOURLANE_ARRAY(class_window), FOURLANE_ARRAY(class_rto), FOURLANE_ARRAY(class_ack_every);
    FOURLANE_ARRAY(class_cts_slots), FOURLANE_ARRAY(flow_src_port), FOURLANE_ARRAY(flow_dst_port);
    FOURLANE_ARRAY(flow_size), FOURLANE_ARRAY(flow_message), FOURLANE_ARRAY(flow_start), FOURLANE_ARRAY(flow_delay);
    FOURLANE_ARRAY(flow_after_first), FOURLANE_ARRAY(flow_class), FOURLANE_ARRAY(flow_hash);
    FOURLANE_ARRAY(flow_back_hash), FOURLANE_ARRAY(flow_pin), FOURLANE_ARRAY(flow_after), FOURLANE_ARRAY(tier_seed);
    FOURLANE_ARRAY(sample_ports);
#undef FOURLANE_ARRAY
}

// Tell `visit` each whole number of a scenario that is not in an array: its name and the number.
template <typename Visit>
void visit_scalars(FabricScenario& in, const Visit& visit) {
    visit("mtu", in.mtu), visit("header", in.header), visit("ack_wire", in.ack_wire), visit("trim_wire", in.trim_wire);
    visit("trim_queue", in.trim_queue), visit("flowlet_gap", in.flowlet_gap);
    visit("flowlet_entries", in.flowlet_entries), visit("ar_quantum", in.ar_quantum), visit("ar_levels", in.ar_levels);
    visit("ar_staleness", in.ar_staleness), visit("pfc_response", in.pfc_response), visit("xon_offset", in.xon_offset);
    visit("watchdog_detection", in.watchdog_detection), visit("watchdog_restoration", in.watchdog_restoration);
    visit("watchdog_drop", in.watchdog_drop), visit("sample_interval", in.sample_interval);
    visit("max_events", in.max_events), visit("max_time", in.max_time);
    FabricDcqcn& p = in.dcqcn;
    visit("dcqcn_alpha_period", p.alpha_period), visit("dcqcn_cnp_interval", p.cnp_interval);
    visit("dcqcn_decrease_gate", p.decrease_gate), visit("dcqcn_timer", p.timer);
    visit("dcqcn_byte_counter", p.byte_counter), visit("dcqcn_fast_rounds", p.fast_rounds);
    visit("dcqcn_clamp", p.clamp);
}

template <typename Visit>
void visit_numbers(FabricDcqcn& p, const Visit& visit) {
    visit("dcqcn_g", p.g), visit("dcqcn_alpha0", p.alpha0), visit("dcqcn_max_decrease", p.max_decrease);
    visit("dcqcn_rate_ai", p.rate_ai), visit("dcqcn_rate_hai", p.rate_hai), visit("dcqcn_min_rate", p.min_rate);
}

// The scenario of some arrays, which must outlive it.
inline FabricScenario view(Arrays& arrays) {
    FabricScenario made = arrays.scalars;
    visit_arrays(arrays, made, [](const char*, auto& array, auto& seen) { seen = array; });
    return made;
}

// Leaves, each with its hosts, and spines; every leaf has `links` cables to every spine. Port h is that of host h.
struct LeafSpine {
    std::size_t leaves, hosts_per_leaf, spines, links = 1;

    std::size_t hosts() const { return leaves * hosts_per_leaf; }
    std::size_t nodes() const { return hosts() + leaves + spines; }
    std::size_t uplinks() const { return spines * links; }
    std::size_t ports() const { return 2 * (hosts() + leaves * uplinks()); }
    std::size_t leaf_port(std::size_t leaf, std::size_t place) const {
        return hosts() + leaf * (hosts_per_leaf + uplinks()) + place;
    }
    std::size_t spine_port(std::size_t spine, std::size_t leaf, std::size_t link) const {
        return leaf_port(leaves, 0) + (spine * leaves + leaf) * links + link;
    }
};

inline void connect(Arrays& arrays, std::size_t a, std::size_t b) {
    arrays.port_peer[a] = static_cast<std::int32_t>(b);
    arrays.port_peer[b] = static_cast<std::int32_t>(a);
}

inline void fill_nodes(Arrays& arrays, const LeafSpine& net) {
    const std::size_t hosts = net.hosts();
    for (std::size_t n = 0; n < net.nodes(); ++n) {
        const bool host = n < hosts;
        const bool leaf = !host && n < hosts + net.leaves;
        const std::size_t ports = host ? 1 : leaf ? net.hosts_per_leaf + net.uplinks() : net.leaves * net.links;
        arrays.node_kind.push_back(host ? 0 : 1);
        arrays.node_tier.push_back(host ? 0 : leaf ? 1 : 2);
        arrays.node_cut_through.push_back(0);
        arrays.node_latency.push_back(host ? 0 : 500'000);
        arrays.node_shared.push_back(host ? 0 : std::int64_t{1} << 38);
        arrays.node_first_port.push_back(static_cast<std::int32_t>(arrays.port_node.size()));
        arrays.leaf_index.push_back(leaf ? static_cast<std::int32_t>(n - hosts) : -1);
        arrays.switch_index.push_back(host ? -1 : static_cast<std::int32_t>(n - hosts));
        arrays.port_node.insert(arrays.port_node.end(), ports, static_cast<std::int32_t>(n));
    }
    arrays.node_first_port.push_back(static_cast<std::int32_t>(net.ports()));
}

// Every cable: 400 Gbit/s, 100 ns.
inline void fill_ports(Arrays& arrays, const LeafSpine& net) {
    const std::size_t ports = net.ports();
    arrays.port_peer.assign(ports, 0);
    for (std::size_t h = 0; h < net.hosts(); ++h) {
        connect(arrays, h, net.leaf_port(h / net.hosts_per_leaf, h % net.hosts_per_leaf));
    }
    for (std::size_t up = 0; up < net.leaves * net.uplinks(); ++up) {
        const std::size_t leaf = up / net.uplinks(), place = up % net.uplinks();
        const std::size_t spine_port = net.spine_port(place / net.links, leaf, place % net.links);
        connect(arrays, net.leaf_port(leaf, net.hosts_per_leaf + place), spine_port);
    }
    arrays.port_ps_q16.assign(ports, 20 << 16);
    arrays.port_prop.assign(ports, 100'000);
    arrays.port_headroom.assign(ports, 1 << 20);
    for (auto* zeros : {&arrays.port_tx_latency, &arrays.port_rx_latency, &arrays.port_message_gap}) {
        zeros->assign(ports, 0);
    }
}

inline void fill_routes(Arrays& arrays, const LeafSpine& net) {
    arrays.epoch_time = {0};
    arrays.epoch_port_up.assign(net.ports(), 1);
    arrays.route_table = {0};
    arrays.route_first = {0};
    for (std::size_t s = 0; s < net.leaves + net.spines; ++s) {
        for (std::size_t leaf = 0; leaf < net.leaves; ++leaf) {
            const bool at_leaf = s < net.leaves;
            const std::size_t first = at_leaf ? net.leaf_port(s, net.hosts_per_leaf) : net.spine_port(s - net.leaves, leaf, 0);
            const std::size_t count = s == leaf ? 0 : at_leaf ? net.uplinks() : net.links;
            for (std::size_t i = 0; i < count; ++i) arrays.route_ports.push_back(static_cast<std::int32_t>(first + i));
            arrays.route_first.push_back(static_cast<std::int64_t>(arrays.route_ports.size()));
        }
    }
}

// One lossless queue, one class: sprayed in turn, placed out of order, unlimited.
inline void fill_lanes(Arrays& arrays) {
    arrays.queue_weight = {0}, arrays.queue_cap_q16 = {0}, arrays.queue_alpha_q16 = {65536};
    arrays.queue_reserved = {0}, arrays.queue_lossless = {1}, arrays.queue_service = {0};
    arrays.queue_kmin = {-1}, arrays.queue_kmax = {0}, arrays.queue_pmax_q32 = {std::int64_t{1} << 32};
    arrays.class_queue = {0}, arrays.class_ack_queue = {0}, arrays.class_cnp_queue = {0};
    arrays.class_routing = {3}, arrays.class_transport = {1}, arrays.class_cc = {0};
    arrays.class_trim = {0}, arrays.class_ecn = {0}, arrays.class_window = {0}, arrays.class_rto = {0};
    arrays.class_ack_every = {1}, arrays.class_cts_slots = {1};
    arrays.tier_seed.assign(8, 0);
}

inline void fill_scalars(FabricScenario& to) {
    to.mtu = 4096;
    to.header = to.ack_wire = to.trim_wire = 64;
    to.flowlet_gap = 5 * kMicrosecond;
    to.flowlet_entries = 256;
    to.ar_levels = to.max_events = to.max_time = kNever;
}

// A network without flows: no delays but those of cables and switches, buffers that hold everything.
inline Arrays leaf_spine(const LeafSpine& net) {
    Arrays made;
    fill_nodes(made, net);
    fill_ports(made, net);
    fill_routes(made, net);
    fill_lanes(made);
    fill_scalars(made.scalars);
    made.flow_message = made.flow_start = made.flow_delay = made.flow_after_first = {0};
    made.flow_class = {0};
    made.flow_pin = {0};
    return made;
}

inline void add_flow(Arrays& arrays, std::size_t source, std::size_t target, std::int64_t size) {
    const auto number = static_cast<std::uint32_t>(arrays.flow_size.size());
    arrays.flow_src_port.push_back(size == 0 ? -1 : static_cast<std::int32_t>(source));
    arrays.flow_dst_port.push_back(size == 0 ? -1 : static_cast<std::int32_t>(target));
    arrays.flow_size.push_back(size);
    arrays.flow_hash.push_back(number * 2'654'435'761U);
    arrays.flow_back_hash.push_back(number * 2'246'822'519U);
}

// Draws that are the same on every machine.
class Draw {
public:
    explicit Draw(std::uint32_t seed) : generator_(seed) {}

    std::uint32_t word() { return generator_(); }
    std::size_t below(std::size_t count) { return word() % count; }
    bool coin() { return below(2) == 0; }

    // One of a few values.
    std::int64_t pick(std::initializer_list<std::int64_t> values) { return one_of(values); }
    template <typename T>
    T one_of(std::initializer_list<T> values) {
        return values.begin()[below(values.size())];
    }

    // So many of a few values.
    template <typename T>
    void fill(std::vector<T>& to, std::size_t count, std::initializer_list<T> values) {
        to.clear();
        for (std::size_t i = 0; i < count; ++i) to.push_back(one_of(values));
    }

private:
    std::mt19937 generator_;
};

inline void vary_network(Draw& draw, Arrays& to, const LeafSpine& net) {
    for (std::size_t p = 0; p < net.ports(); ++p) {
        const auto peer = static_cast<std::size_t>(to.port_peer[p]);
        if (peer < p) continue;
        to.port_ps_q16[p] = to.port_ps_q16[peer] = draw.pick({20 << 16, 10 << 16, 1'310'723, 80 << 16});
        to.port_prop[p] = to.port_prop[peer] = draw.pick({100'000, 0, 1, 1'000'003});
    }
    to.port_headroom.assign(net.ports(), draw.pick({1 << 20, 1 << 20, 20'000, 5000, 0}));
    for (std::size_t h = 0; h < net.hosts(); ++h) {
        to.port_tx_latency[h] = draw.pick({0, 300'000});
        to.port_rx_latency[h] = draw.pick({0, 300'000});
        to.port_message_gap[h] = draw.pick({0, 300'000});
    }
    const bool cuts = draw.coin();
    const std::int64_t room = draw.pick({1 << 30, 60'000, 20'000, 3000, 0});
    for (std::size_t n = net.hosts(); n < net.nodes(); ++n) {
        to.node_latency[n] = draw.pick({500'000, 0, 83'200});
        to.node_cut_through[n] = cuts && draw.coin() ? 1 : 0;
        to.node_shared[n] = draw.coin() ? room : std::int64_t{1} << 30;
    }
}

inline void vary_queues(Draw& draw, Arrays& to, std::size_t queues) {
    const std::int64_t largest = std::max<std::int64_t>(to.scalars.mtu + to.scalars.header, 200);
    draw.fill<std::int64_t>(to.queue_weight, queues, {0, largest, 3 * largest + 1});
    draw.fill<std::int64_t>(to.queue_cap_q16, queues, {0, 0, 65536, 2 * 65536, 200'001});
    draw.fill<std::int64_t>(to.queue_alpha_q16, queues, {65536, 65536, 8 << 16, 128 << 16, 8192, 0});
    draw.fill<std::int64_t>(to.queue_reserved, queues, {0, 1000, 4160, 10'000});
    draw.fill<std::uint8_t>(to.queue_lossless, queues, {0, 1});
    draw.fill<std::int64_t>(to.queue_kmin, queues, {-1, 0, 4160, 10'000});
    draw.fill<std::int64_t>(to.queue_pmax_q32, queues, {std::int64_t{1} << 32, 1 << 30, 0});
    draw.fill<std::uint8_t>(to.queue_service, queues, {0, 1});
    to.queue_kmax.clear();
    for (const std::int64_t low : to.queue_kmin) to.queue_kmax.push_back(std::max<std::int64_t>(low, 0) + draw.pick({0, 4160, 30'000}));
}

inline void vary_classes(Draw& draw, Arrays& to, std::size_t classes, std::size_t queues) {
    for (auto* queue_of : {&to.class_queue, &to.class_ack_queue, &to.class_cnp_queue}) {
        queue_of->clear();
        for (std::size_t c = 0; c < classes; ++c) queue_of->push_back(static_cast<std::uint8_t>(draw.below(queues)));
    }
    draw.fill<std::uint8_t>(to.class_routing, classes, {0, 1, 2, 3, 4, 5});
    draw.fill<std::uint8_t>(to.class_transport, classes, {0, 1, 2});
    draw.fill<std::uint8_t>(to.class_cc, classes, {0, 1, 2});
    draw.fill<std::uint8_t>(to.class_trim, classes, {0, 1});
    draw.fill<std::uint8_t>(to.class_ecn, classes, {0, 1, 1});
    draw.fill<std::int64_t>(to.class_window, classes, {0, 0, 1, 9000, 20'000});
    draw.fill<std::int64_t>(to.class_rto, classes, {0, 20 * kMicrosecond, 3 * kMicrosecond});
    draw.fill<std::int32_t>(to.class_ack_every, classes, {1, 2, 5});
    draw.fill<std::int32_t>(to.class_cts_slots, classes, {1, 2});
    for (std::size_t c = 0; c < classes; ++c) {
        if (to.class_transport[c] != 0 && (to.class_rto[c] > 0 || to.class_trim[c] != 0)) to.class_ack_every[c] = 1;
    }
}

// Flows between random hosts; some wait for others, now and then in a circle.
inline void vary_flows(Draw& draw, Arrays& to, const LeafSpine& net, std::size_t classes, std::size_t flows) {
    const bool waits = draw.coin();
    for (std::size_t f = 0; f < flows; ++f) {
        const std::size_t source = draw.below(net.hosts());
        add_flow(to, source, (source + 1 + draw.below(net.hosts() - 1)) % net.hosts(), draw.pick({20'000, 4096, 0, 1, 5000, 60'000}));
        to.flow_hash[f] = draw.word();
        to.flow_back_hash[f] = draw.word();
    }
    draw.fill<std::int64_t>(to.flow_message, flows, {0, 1000, 5000, 4096});
    draw.fill<std::int64_t>(to.flow_start, flows, {0, 83'200, kMicrosecond, 10 * kMicrosecond});
    draw.fill<std::int64_t>(to.flow_delay, flows, {0, 5000});
    to.flow_class.clear();
    to.flow_pin.clear();
    for (std::size_t f = 0; f < flows; ++f) {
        to.flow_class.push_back(static_cast<std::uint8_t>(draw.below(classes)));
        to.flow_pin.push_back(draw.word());
        if (!waits) continue;
        const bool circular = draw.below(40) == 0;
        const std::size_t first = circular ? 0 : f + 1;
        if (first < flows && draw.coin()) to.flow_after.push_back(static_cast<std::int32_t>(first + draw.below(flows - first)));
        to.flow_after_first.push_back(static_cast<std::int64_t>(to.flow_after.size()));
    }
}

// Cables that fail, each in both directions, and come back; routes lead to them all the same.
inline void vary_epochs(Draw& draw, Arrays& to, const LeafSpine& net) {
    const std::size_t epochs = draw.coin() ? 1 : 2 + draw.below(3);
    for (std::size_t x = 1; x < epochs; ++x) {
        to.epoch_time.push_back(to.epoch_time.back() + draw.pick({kMicrosecond, 182'000, 20 * kMicrosecond}));
        to.route_table.push_back(0);
        std::vector<std::uint8_t> up(net.ports(), 1);
        for (std::size_t failed = draw.below(3); failed > 0; --failed) {
            const std::size_t port = draw.below(net.ports());
            up[port] = up[static_cast<std::size_t>(to.port_peer[port])] = 0;
        }
        to.epoch_port_up.insert(to.epoch_port_up.end(), up.begin(), up.end());
    }
}

inline void vary_dcqcn(Draw& draw, FabricDcqcn& to) {
    to.g = draw.one_of({1.0 / 256, 0.25, 0.0});
    to.alpha0 = draw.one_of({1.0, 0.3});
    to.alpha_period = draw.pick({kMicrosecond, 300'001});
    to.cnp_interval = draw.pick({0, 500'000, 4 * kMicrosecond});
    to.decrease_gate = draw.pick({0, 4 * kMicrosecond});
    to.max_decrease = draw.one_of({0.5, 0.1});
    to.timer = draw.pick({2 * kMicrosecond, 300'000});
    to.byte_counter = draw.pick({5000, std::int64_t{1} << 40, 1000});
    to.fast_rounds = draw.pick({1, 0, 5});
    to.rate_ai = draw.one_of({40e6, 5e9});
    to.rate_hai = draw.one_of({400e6, 20e9});
    to.min_rate = draw.one_of({100e6, 10e9, 1e15});
    to.clamp = draw.pick({1, 0});
}

inline void vary_scalars(Draw& draw, Arrays& arrays, const LeafSpine& net, std::size_t queues) {
    FabricScenario& to = arrays.scalars;
    to.seed = draw.one_of<std::uint64_t>({0, 1, ~std::uint64_t{0}});
    to.trim_wire = draw.pick({64, 200});
    to.trim_queue = static_cast<std::int64_t>(draw.below(queues));
    to.flowlet_gap = draw.pick({83'200, 0, 2 * kMicrosecond});
    to.flowlet_entries = draw.pick({1, 7, 256});
    to.ar_quantum = draw.pick({1, 4160, 20'000});
    to.ar_levels = draw.pick({kNever, 1, 4});
    to.ar_staleness = draw.pick({0, 100'000, std::int64_t{1} << 50});
    to.pfc_response = draw.pick({0, 48'320, 500'000});
    to.xon_offset = draw.pick({0, 3000});
    to.watchdog_detection = draw.pick({0, 300'000, 2 * kMicrosecond});
    to.watchdog_restoration = draw.pick({0, 500'000, 5 * kMicrosecond});
    to.watchdog_drop = draw.pick({1, 0});
    to.sample_interval = draw.pick({0, 700'000});
    to.max_events = draw.below(10) == 0 ? draw.pick({300, 1}) : 8000;
    to.max_time = draw.below(6) == 0 ? draw.pick({5 * kMicrosecond, 1'234'567}) : 400 * kMicrosecond;
    for (std::size_t i = draw.below(4); i > 0; --i) arrays.sample_ports.push_back(static_cast<std::int32_t>(draw.below(net.ports())));
    for (std::uint32_t& seed : arrays.tier_seed) seed = draw.one_of<std::uint32_t>({0, 0x12345678});
    vary_dcqcn(draw, to.dcqcn);
}

// A small scenario over everything that the simulator does. Times and sizes come from short lists so that events fall
// on the same instant and queues just fit.
inline Arrays random_scenario(Draw& draw, const LeafSpine& net, std::size_t queues, std::size_t flows) {
    const std::size_t classes = 1 + draw.below(4);
    Arrays made = leaf_spine(net);
    made.scalars.mtu = draw.pick({4096, 1000});
    made.scalars.header = draw.pick({64, 0});
    made.scalars.ack_wire = draw.pick({64, 1});
    vary_network(draw, made, net);
    vary_queues(draw, made, queues);
    vary_classes(draw, made, classes, queues);
    vary_flows(draw, made, net, classes, flows);
    vary_epochs(draw, made, net);
    vary_scalars(draw, made, net, queues);
    return made;
}

inline Arrays random_scenario(std::uint32_t seed) {
    Draw draw(seed);
    const std::size_t spines = draw.below(3);
    const LeafSpine net{spines == 0 ? 1 : 2 + draw.below(2), 2 + draw.below(2), spines, 1 + draw.below(2)};
    const std::size_t queues = 1 + draw.below(8);
    return random_scenario(draw, net, queues, 1 + draw.below(12));
}

}  // namespace fourlane::test
