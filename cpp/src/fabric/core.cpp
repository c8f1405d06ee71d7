#include "core.hpp"

#include <algorithm>
#include <bit>

#include "receiving.hpp"
#include "sending.hpp"
#include "switching.hpp"

namespace fourlane::fabric {

namespace {

constexpr std::uint8_t kHost = 0;
constexpr std::size_t kNearCache = 256 << 10;  // bytes of state that are at hand without being asked for

// How far ahead events of packets lie, so that the wheel of events reaches there.
Time reach_of(const FabricScenario& in) {
    const std::int64_t largest = std::max({in.mtu + in.header, in.ack_wire, in.trim_wire});
    Time link{};
    for (std::size_t port = 0; port < in.port_node.size(); ++port) {
        link = std::max(link, Time{in.port_prop[port]} + serialisation(in.port_ps_q16[port], {largest}));
    }
    return std::max(link, Time{std::ranges::max(in.node_latency)}) + link;
}

// About a bucket for every two events, if every port is busy.
Time width_of(const FabricScenario& in) {
    return {std::clamp<std::int64_t>(200'000 / static_cast<std::int64_t>(in.port_node.size() + 1), 4, 1 << 12)};
}

const FabricScenario& checked(const FabricScenario& scenario) {
    check(scenario);
    return scenario;
}

}  // namespace

Core::Core(const FabricScenario& scenario)
    : in_(checked(scenario)), events_(reach_of(in_), width_of(in_)), routes_(in_), queue_count_(in_.queue_weight.size()) {
    set_up_queues();
    set_up_classes();
    set_up_nodes();
    set_up_ports();
    set_up_flows();
    set_up_starts();
    for (std::uint32_t epoch = 1; epoch < in_.epoch_time.size(); ++epoch) {
        events_.push({in_.epoch_time[epoch]}, EventKind::epoch, epoch);
    }
    enter_epoch(0, {});
    fetches_ = ports_.size() * (sizeof(Port) + queue_count_ * sizeof(Queue)) + flows_.size() * sizeof(Flow) > kNearCache;
    if (fetches_) events_.know(EventQueue::kLookAhead);
    if (in_.sample_interval > 0) events_.push({in_.sample_interval}, EventKind::sample, 0);
    if (in_.watchdog_detection > 0) look_at_.assign(queues_.size(), {-1});
    if (flows_.empty()) status_ = "done";
}

void Core::set_up_queues() {
    for (std::size_t q = 0; q < queue_count_; ++q) {
        QueueRules& rules = queue_rules_[q];
        rules = {in_.queue_weight[q], in_.queue_cap_q16[q], in_.queue_alpha_q16[q], {in_.queue_reserved[q]},
                 in_.queue_kmin[q], in_.queue_kmax[q], in_.queue_pmax_q32[q], in_.queue_lossless[q] != 0,
                 in_.queue_service[q] != 0, static_cast<std::uint8_t>(q)};
        if (rules.quantum == 0) strict_queues_ |= 1U << q;
        for (std::size_t step = 1; step <= queue_count_; ++step) {
            const std::size_t next = (q + step) % queue_count_;
            if (in_.queue_weight[next] == 0) continue;
            rules.next_weighted = static_cast<std::uint8_t>(next);
            break;
        }
    }
}

void Core::set_up_classes() {
    for (std::size_t c = 0; c < in_.class_queue.size(); ++c) {
        const auto transport = static_cast<Transport>(in_.class_transport[c]);
        ClassRules& rules = classes_[c];
        rules = {static_cast<Routing>(in_.class_routing[c]), transport, static_cast<Congestion>(in_.class_cc[c]),
                 in_.class_queue[c], in_.class_ack_queue[c], in_.class_cnp_queue[c],
                 in_.class_trim[c] != 0, in_.class_ecn[c] != 0, false, true, {in_.class_window[c]}, {in_.class_rto[c]},
                 static_cast<std::uint32_t>(in_.class_ack_every[c]), static_cast<std::uint32_t>(in_.class_cts_slots[c])};
        rules.repeats = transport != Transport::go_back_n && (rules.rto > Time{} || rules.trims);
        rules.plain = transport == Transport::out_of_order && !rules.repeats && rules.ack_every == 1 &&
                      rules.congestion == Congestion::none;
        const bool adapts = rules.routing == Routing::adaptive || rules.routing == Routing::flowlet;
        signal_follows_ = signal_follows_ || (adapts && in_.ar_staleness == 0);
    }
    ar_most_ = in_.ar_levels - 1;
}

void Core::set_up_nodes() {
    nodes_.resize(in_.node_kind.size());
    const auto entries = static_cast<std::size_t>(in_.flowlet_entries);
    const bool flowlets = std::ranges::find(in_.class_routing, std::uint8_t{1}) != in_.class_routing.end();
    for (std::size_t n = 0; n < nodes_.size(); ++n) {
        Node& node = nodes_[n];
        node.latency = {in_.node_latency[n]};
        node.shared = {in_.node_shared[n]};
        node.spray_key = (n + 1) * kGolden;
        node.tier = in_.node_tier[n];
        node.tier_seed = in_.tier_seed[node.tier];
        node.cut_through = in_.node_cut_through[n] != 0 && in_.node_kind[n] != kHost;
        if (in_.node_kind[n] == kHost) continue;
        node.route_row = static_cast<std::uint32_t>(in_.switch_index[n]) * routes_.leaves();
        node.flowlets = flowlets_.size();
        if (flowlets) flowlets_.resize(flowlets_.size() + entries);
    }
    if (std::ranges::find(in_.class_routing, std::uint8_t{3}) == in_.class_routing.end()) return;
    turns_.resize(2 * routes_.cells());
    for (std::size_t cell = 0; cell < turns_.size(); ++cell) {
        turns_[cell] = static_cast<std::uint32_t>(mix64(in_.seed ^ ((cell + 1) * kGolden)) >> 32);
    }
}

void Core::set_up_ports() {
    const std::size_t count = in_.port_node.size();
    std::uint8_t first_weighted = 0;
    while (first_weighted + 1U < queue_count_ && in_.queue_weight[first_weighted] == 0) ++first_weighted;
    ports_.resize(count);
    cold_.resize(count);
    endpoints_.resize(count);
    depth_.resize(count);
    clear_at_.resize(count);
    signal_.resize(count);
    queues_.resize(count * queue_count_);
    counters_.resize(count * queue_count_);
    ingresses_.resize(count * queue_count_);
    for (std::size_t p = 0; p < count; ++p) {
        const auto peer = static_cast<std::uint32_t>(in_.port_peer[p]);
        const auto here = static_cast<std::size_t>(in_.port_node[p]);
        const auto there = static_cast<std::size_t>(in_.port_node[peer]);
        Port& port = ports_[p];
        port.pace_q16 = in_.port_ps_q16[p];
        port.propagation = {in_.port_prop[p]};
        port.peer = peer;
        port.node = static_cast<std::uint32_t>(here);
        port.to_node = static_cast<std::uint32_t>(there);
        port.current = first_weighted;
        port.at_host = in_.node_kind[here] == kHost;
        port.to_host = in_.node_kind[there] == kHost;
        port.to_cut_through = nodes_[there].cut_through;
        cold_[p].tx_latency = {in_.port_tx_latency[p]};
        cold_[p].rx_latency = {in_.port_rx_latency[p]};
        cold_[p].message_gap = {in_.port_message_gap[p]};
        gaps_ = gaps_ || in_.port_message_gap[p] > 0;
        for (unsigned q = 0; q < queue_count_; ++q) ingress_at(static_cast<std::uint32_t>(p), q).headroom = {in_.port_headroom[p]};
        if (!port.at_host) continue;
        const std::int32_t leaf = in_.leaf_index[there];
        endpoints_[p] = {static_cast<std::uint32_t>(there), leaf < 0 ? kNone : static_cast<std::uint32_t>(leaf), peer};
    }
}

void Core::set_up_flows() {
    const std::size_t count = in_.flow_src_port.size();
    message_ = Column<std::int64_t>(in_.flow_message);
    start_ = Column<std::int64_t>(in_.flow_start);
    delay_ = Column<std::int64_t>(in_.flow_delay);
    pin_ = Column<std::uint32_t>(in_.flow_pin);
    const Column<std::int64_t> size(in_.flow_size);
    const Column<std::uint8_t> traffic_class(in_.flow_class);
    flows_.resize(count);
    flow_started_.assign(count, -1);
    flow_delivered_.assign(count, -1);
    flow_finish_.assign(count, -1);
    flow_retransmitted_.assign(count, 0);
    latency_counts_.assign(in_.class_queue.size() * kFabricBuckets, 0);
    for (std::size_t f = 0; f < count; ++f) {
        Flow& flow = flows_[f];
        flow.size = size[f];
        flow.total = packets_of(flow.size, message_[f]);
        flow.source = static_cast<std::uint32_t>(in_.flow_src_port[f]);
        flow.destination = static_cast<std::uint32_t>(in_.flow_dst_port[f]);
        flow.hash = in_.flow_hash[f];
        flow.back_hash = in_.flow_back_hash[f];
        flow.traffic_class = traffic_class[f];
        const ClassRules& rules = classes_[flow.traffic_class];
        if (rules.routing == Routing::pinned) flow.hash = flow.back_hash = pin_[f];
        if (flow.total > 0 && !rules.plain) add_details(static_cast<std::uint32_t>(f), rules);
    }
}

std::uint32_t Core::packets_of(std::int64_t size, std::int64_t message) const {
    const auto parts = [&](std::int64_t bytes) { return (bytes + in_.mtu - 1) / in_.mtu; };
    if (message == 0 || message >= size) return static_cast<std::uint32_t>(parts(size));
    return static_cast<std::uint32_t>(size / message * parts(message) + parts(size % message));
}

// Flows without predecessors start in order of time and number; only the next of them has an event.
void Core::set_up_starts() {
    const std::size_t count = flows_.size();
    if (in_.flow_after_first.size() > 1 && !in_.flow_after.empty()) {
        waiting_.assign(count, 0);
        for (const std::int32_t later : in_.flow_after) ++waiting_[static_cast<std::size_t>(later)];
        not_before_.assign(count, {});
    }
    const auto first_of_all = [this](std::uint32_t f) { return waiting_.empty() || waiting_[f] == 0; };
    bool rising = waiting_.empty();
    for (std::uint32_t f = 1; f < count && rising; ++f) rising = start_time(f - 1, {}) <= start_time(f, {});
    starts_ = count;
    if (!rising) {
        for (std::uint32_t f = 0; f < count; ++f) {
            if (first_of_all(f)) start_order_.push_back(f);
        }
        std::ranges::stable_sort(start_order_, {}, [this](std::uint32_t f) { return start_time(f, {}); });
        starts_ = start_order_.size();
    }
    push_next_start();
}

// How long a flow's bytes take to its port. A gate has none.
Time Core::latency_before(const Flow& flow) const { return flow.total == 0 ? Time{} : cold_[flow.source].tx_latency; }

// When the first bytes of a flow reach its port, if it need not wait for others any more.
Time Core::start_time(std::uint32_t number, Time not_before) const {
    return std::max(Time{start_[number]}, not_before) + Time{delay_[number]} + latency_before(flows_[number]);
}

void Core::push_next_start() {
    if (next_start_ >= starts_) return;
    next_starting_ = start_order_.empty() ? static_cast<std::uint32_t>(next_start_) : start_order_[next_start_];
    ++next_start_;
    events_.push(start_time(next_starting_, {}), EventKind::start, next_starting_);
}

void Core::start(std::uint32_t number, Time now) {
    if (number == next_starting_) push_next_start();
    Flow& flow = flows_[number];
    flow_started_[number] = (now - latency_before(flow)).ps;
    if (flow.total == 0) {
        flow_delivered_[number] = now.ps;
        if (!waiting_.empty()) release_dependents(number, now);
        finish(number, flow, now);
    } else if (classes_[flow.traffic_class].congestion == Congestion::clear_to_send) {
        send_control(flow, number, PacketKind::rts, 0, now);
    } else {
        flow.flags |= Flow::open;
        offer(number, flow, now);
    }
}

void Core::release_dependents(std::uint32_t number, Time when) {
    const auto first = static_cast<std::size_t>(in_.flow_after_first[number]);
    const auto end = static_cast<std::size_t>(in_.flow_after_first[number + 1]);
    for (std::size_t i = first; i < end; ++i) {
        const auto later = static_cast<std::uint32_t>(in_.flow_after[i]);
        not_before_[later] = std::max(not_before_[later], when);
        if (--waiting_[later] == 0) events_.push(start_time(later, not_before_[later]), EventKind::start, later);
    }
}

bool Core::advance(std::int64_t events) {
    for (; events > 0 && status_ == nullptr; --events) {
        if (events_.empty()) {
            status_ = "stuck";
            break;
        }
        const Event event = events_.pop();
        if (fetches_) fetch_ahead();
        if (event.time.ps > in_.max_time) {
            now_ = {in_.max_time};
            status_ = "time";
        } else {
            dispatch(event);
        }
    }
    return status_ != nullptr;
}

// Ask for the cache lines that the next events will need, each as soon as what leads there has arrived.
inline void Core::fetch_ahead() {
    const auto of_packets = [](EventKind kind) { return kind == EventKind::transmit || kind == EventKind::arrive; };
    events_.look_ahead(EventQueue::kLookAhead, [&](EventKind kind, std::uint32_t id) {
        if (of_packets(kind)) fetch(&ports_[id]);
    });
    events_.look_ahead(16, [&](EventKind kind, std::uint32_t id) {
        if (!of_packets(kind)) return;
        const Port& port = ports_[id];
        if (kind == EventKind::arrive) {
            if (port.flight_head != kNone) fetch(&packets_[port.flight_head]);
        } else {
            for (unsigned left = port.busy; left != 0; left &= left - 1) {
                fetch(&queue_at(id, static_cast<unsigned>(std::countr_zero(left))));
            }
            if (port.flight_head != kNone) fetch(&packets_[port.flight_tail]);
        }
    });
    events_.look_ahead(8, [&](EventKind kind, std::uint32_t id) {
        if (!of_packets(kind)) return;
        const Port& port = ports_[id];
        if (kind == EventKind::arrive) {
            if (port.flight_head == kNone) return;
            const Packet& packet = packets_[port.flight_head];
            if (port.to_host) return fetch(&flows_[packet.flow]);
            const Endpoint& end = endpoints_[packet.destination];
            if (end.leaf_index != kNone) fetch(routes_.place_of(nodes_[port.to_node].route_row, end.leaf_index));
            fetch(&ingress_at(port.peer, packet.queue));
        } else {
            for (unsigned left = port.busy; left != 0; left &= left - 1) {
                const Queue& queue = queue_at(id, static_cast<unsigned>(std::countr_zero(left)));
                if (queue.head != kNone) fetch(&packets_[queue.head]);
            }
        }
    });
    events_.look_ahead(4, [&](EventKind kind, std::uint32_t id) {
        if (!of_packets(kind)) return;
        const Port& port = ports_[id];
        if (kind == EventKind::arrive) {
            if (port.flight_head != kNone) fetch_for_arrival(port);
        } else if (!port.at_host && port.busy != 0) {
            const Queue& queue = queue_at(id, static_cast<unsigned>(std::countr_zero(port.busy)));
            if (queue.head != kNone) fetch(&ingress_at(packets_[queue.head].ingress, packets_[queue.head].queue));
        }
    });
}

// Fetch the egress port of the packet that arrives next on a link, as far as that is certain.
inline void Core::fetch_for_arrival(const Port& link) {
    const Packet& packet = packets_[link.flight_head];
    std::uint32_t egress = link.peer;
    unsigned q = packet.queue;
    if (link.to_host) {
        q = classes_[packet.traffic_class].ack_queue;
    } else {
        const Endpoint& end = endpoints_[packet.destination];
        egress = end.last_port;
        if (end.leaf != link.to_node) {
            if (end.leaf_index == kNone) return;
            const auto ports = routes_.towards(nodes_[link.to_node].route_row, end.leaf_index);
            if (ports.empty()) return;
            if (ports.size() > 1) return fetch(&signal_[ports[0]]);
            egress = ports[0];
        }
    }
    fetch(&ports_[egress]);
    fetch(&queue_at(egress, q));
    fetch(&depth_[egress]);
}

// Act on an event unless it has lost its meaning since it was pushed.
inline void Core::dispatch(Event event) {
    const auto [now, kind, id] = event;
    switch (kind) {
    case EventKind::transmit:
        if (ports_[id].wake == now && counts(now)) transmit(id, now);
        return;
    case EventKind::arrive: {
        const std::uint32_t head = ports_[id].flight_head;
        if (head != kNone && packets_[head].time == now && counts(now)) arrive(id, now);
        return;
    }
    case EventKind::epoch:
        if (counts(now)) enter_epoch(id, now);
        return;
    case EventKind::pause:
        if (counts(now)) pause(id, now);
        return;
    case EventKind::start:
        if (counts(now)) start(id, now);
        return;
    case EventKind::pace:
        if (detail(id).pace_at == now && counts(now)) pace_over(id, now);
        return;
    case EventKind::cc_timer:
        if (detail(id).timer_at == now && counts(now)) rate_timer(id, now);
        return;
    case EventKind::rto:
        if (detail(id).rto_at == now && counts(now)) timeout(id, now);
        return;
    case EventKind::watchdog:
        if (look_at_[(id >> 3) * queue_count_ + (id & 7)] == now && counts(now)) look(id, now);
        return;
    case EventKind::sample:
        if (counts(now)) sample(now);
        return;
    }
}

std::shared_ptr<const FabricResult> Core::result() {
    if (result_ != nullptr) return result_;
    if (status_ == nullptr) return std::make_shared<const FabricResult>(gather(false));
    result_ = std::make_shared<const FabricResult>(gather(true));
    return result_;
}

// With `last`, arrays of flows are handed over instead of copied.
FabricResult Core::gather(bool last) {
    FabricResult found;
    found.status = status_ == nullptr ? "running" : status_;
    found.time = now_.ps;
    found.events = events_done_;
    found.flows_done = flows_done_;
    found.data_hops = data_hops_;
    found.data_packets_sent = data_sent_;
    found.data_packets_delivered = data_delivered_;
    found.data_packets_dropped = data_dropped_;
    found.delivered_payload = payload_delivered_;
    found.wire_bytes_sent = wire_sent_.count;
    found.wire_bytes_delivered = wire_delivered_.count;
    found.wire_bytes_dropped = wire_dropped_.count;
    found.wire_bytes_queued = bytes_inside().count;
    found.flow_reorder.reserve(flows_.size());
    for (const Flow& flow : flows_) found.flow_reorder.push_back(flow.reorder);
    if (last) HugeVector<Flow>().swap(flows_);
    const auto hand_over = [last](auto& from, auto& to) { last ? to.swap(from) : void(to = from); };
    hand_over(flow_started_, found.flow_started);
    hand_over(flow_delivered_, found.flow_delivered);
    hand_over(flow_finish_, found.flow_finish);
    hand_over(flow_retransmitted_, found.flow_retransmitted);
    hand_over(latency_counts_, found.latency_counts);
    hand_over(sample_time_, found.sample_time);
    hand_over(sample_tx_, found.sample_tx);
    hand_over(sample_depth_, found.sample_depth);
    for (const Depth& depth : depth_) found.port_max_depth.push_back(depth.most);
    for (std::size_t i = 0; i < queues_.size(); ++i) {
        const auto port = i / queue_count_;
        const bool paused = (ports_[port].paused >> (i % queue_count_) & 1) != 0;
        const Time standing = paused ? now_ - counters_[i].paused_since : Time{};
        found.port_tx_bytes.push_back(queues_[i].sent_bytes);
        found.port_tx_packets.push_back(queues_[i].sent_packets);
        found.port_drops.push_back(counters_[i].drops);
        found.port_marks.push_back(counters_[i].marks);
        found.port_trims.push_back(counters_[i].trims);
        found.port_pauses.push_back(counters_[i].pauses);
        found.port_paused_ps.push_back((counters_[i].paused + standing).ps);
        found.port_depth.push_back(queues_[i].bytes.count);
    }
    for (const Port& port : ports_) found.port_paused.push_back(port.paused);
    return found;
}

// Bytes queued at switches, and on links.
Bytes Core::bytes_inside() {
    Bytes sum;
    for (std::uint32_t p = 0; p < ports_.size(); ++p) {
        for (std::uint32_t id = ports_[p].flight_head; id != kNone; id = packets_[id].next) sum += {packets_[id].wire};
        if (!ports_[p].at_host) sum += {depth_[p].now};
    }
    return sum;
}

}  // namespace fourlane::fabric
