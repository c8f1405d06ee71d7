// The simulator itself: its state, and the rules as members. The hot ones are inline in switching.hpp, sending.hpp and
// receiving.hpp, compiled into core.cpp; the rare ones are in buffers.cpp, failures.cpp, recovery.cpp, congestion.cpp.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "event_queue.hpp"
#include "fourlane/fabric.hpp"
#include "routes.hpp"
#include "state.hpp"

namespace fourlane::fabric {

// Throws std::invalid_argument naming the array at fault.
void check(const FabricScenario& scenario);

// An array of one element for all flows, or of one each.
template <typename T>
class Column {
public:
    Column() = default;
    explicit Column(std::span<const T> values) : values_(values.data()), mask_(values.size() == 1 ? 0 : ~std::size_t{0}) {}
    T operator[](std::size_t flow) const { return values_[flow & mask_]; }

private:
    const T* values_ = nullptr;
    std::size_t mask_ = 0;
};

enum class Routing : std::uint8_t { ecmp, flowlet, spray_random, spray_round_robin, adaptive, pinned };
enum class Transport : std::uint8_t { go_back_n, out_of_order, reorder_buffer };
enum class Congestion : std::uint8_t { none, dcqcn, clear_to_send };

struct ClassRules {
    Routing routing;
    Transport transport;
    Congestion congestion;
    std::uint8_t queue, ack_queue, cnp_queue;
    bool trims, marks;
    bool repeats;  // packets may be sent again one by one, so that they need to be told apart
    bool plain;    // flows need no `Detail`
    Bytes window;  // 0: unlimited
    Time rto;       // 0: none
    std::uint32_t ack_every;
    std::uint32_t slots;
};

struct QueueRules {
    std::int64_t quantum;  // 0: strict
    std::int64_t cap_q16;
    std::int64_t alpha_q16;
    Bytes reserved;
    std::int64_t kmin, kmax, pmax_q32;
    bool lossless, in_order;
    std::uint8_t next_weighted;
};

inline constexpr Bytes kCutThroughHeader{64};
inline constexpr Bytes kCapBurst{16384};
inline constexpr Bytes kPauseFrame{64};

class Core {
public:
    explicit Core(const FabricScenario& scenario);
    bool advance(std::int64_t events);
    FabricProgress progress() const { return {now_.ps, flows_done_, events_done_, payload_delivered_}; }
    std::shared_ptr<const FabricResult> result();

private:
    struct Place {
        std::int64_t message;
        std::int64_t part;
    };

    // core.cpp
    void set_up_nodes();
    void set_up_ports();
    void set_up_queues();
    void set_up_classes();
    void set_up_flows();
    void set_up_starts();
    void dispatch(Event event);
    void fetch_ahead();
    void fetch_for_arrival(const Port& link);
    FabricResult gather(bool last);
    Bytes bytes_inside();
    void push_next_start();
    Time start_time(std::uint32_t flow, Time not_before) const;
    Time latency_before(const Flow& flow) const;
    void start(std::uint32_t flow, Time now);
    void release_dependents(std::uint32_t flow, Time when);
    std::uint32_t packets_of(std::int64_t size, std::int64_t message) const;
    bool counts(Time now) {
        if (events_done_ == in_.max_events) {
            status_ = "budget";
            return false;
        }
        ++events_done_;
        now_ = now;
        return true;
    }

    // switching.hpp: a packet at a switch
    void arrive(std::uint32_t via, Time now);
    void forward(std::uint32_t id, std::uint32_t via, Time now);
    Time cut_through_wait(const Port& link, Bytes wire, std::uint32_t egress, const Packet& packet, Time now);
    std::uint32_t route(Node& node, std::uint32_t number, const Packet& packet, Time now);
    std::uint32_t turn(const Node& node, std::uint32_t leaf, const Packet& packet);
    std::uint32_t draw(Node& node);
    std::uint32_t choose_adaptive(Node& node, std::span<const std::uint32_t> ports, Time now);
    // A port's depth as adaptive routing sees it: in quanta, up to a level.
    std::int64_t signal_of(std::int64_t depth) const {
        return std::min(in_.ar_quantum == 1 ? depth : depth / in_.ar_quantum, ar_most_);
    }
    bool admit(Node& node, Packet& packet, std::uint32_t egress, Time now);
    bool charge(Node& node, Packet& packet, std::uint32_t egress, Time now);
    bool charge_ingress(Node& node, Packet& packet, const QueueRules& rules, Time now);
    void release(Packet& packet, std::uint32_t egress, Time now);
    static Bytes threshold(const Node& node, const QueueRules& rules) {
        return {(rules.alpha_q16 * (node.shared - node.shared_used).count) >> 16};
    }
    // How much more of the pool a group needs that grows from `held` by `more`.
    static Bytes growth(const QueueRules& rules, Bytes held, Bytes more) {
        return std::max(Bytes{}, held + more - rules.reserved) - std::max(Bytes{}, held - rules.reserved);
    }
    static bool fits(const Node& node, const QueueRules& rules, Bytes held, Bytes more) {
        return std::max(Bytes{}, held + more - rules.reserved) <= threshold(node, rules) &&
               growth(rules, held, more) <= node.shared - node.shared_used;
    }

    // buffers.cpp: what is rare at a switch
    std::uint32_t choose_flowlet(Node& node, std::uint32_t hash, std::span<const std::uint32_t> ports, Time now);
    void look_again(std::span<const std::uint32_t> ports, Time now);
    bool trim(Node& node, Packet& packet, std::uint32_t egress, Time now);
    void mark(Packet& packet, std::uint32_t egress, Bytes held);
    void resume_if_empty_enough(const Node& node, const QueueRules& rules, Ingress& group, std::uint32_t ingress,
                                unsigned queue, Time now);
    void send_frame(std::uint32_t ingress, unsigned queue, bool xoff, Time now);
    void drop(std::uint32_t id, std::uint32_t port);

    // failures.cpp
    void enter_epoch(std::uint32_t epoch, Time now);
    void lose(std::uint32_t port, Time now);
    void pause(std::uint32_t event, Time now);
    void watch(std::uint32_t port, unsigned queue, Time when);
    void look(std::uint32_t event, Time now);
    void drop_queued(std::uint32_t port, unsigned queue, Time now);
    void sample(Time now);
    void kick(std::uint32_t port, Time now);

    // sending.hpp: an egress port
    void append(std::uint32_t port, std::uint32_t id);
    std::uint32_t take(std::uint32_t number, Port& port, unsigned queue);
    void wake(std::uint32_t number, Port& port, Time when) {
        if (when >= port.wake) return;
        port.wake = when;
        events_.push(when, EventKind::transmit, number);
    }
    void transmit(std::uint32_t number, Time now);
    void put_on_link(std::uint32_t number, Port& port, Queue& queue, Packet& packet, std::uint32_t id, Time gap, Time now);
    int pick(Port& port, std::uint32_t number, Time now);
    int pick_weighted(Port& port, std::uint32_t number, unsigned can);
    bool eligible(std::uint32_t number, unsigned queue, Time now);
    std::int64_t next_wire(const Queue& queue);
    void spend_credit(const Port& port, Queue& queue, const QueueRules& rules, Time busy, Time now);
    void change_depth(std::uint32_t port, std::int64_t by);
    bool halted(const Port& port, unsigned queue) const {
        return ((port.paused & ~(in_.watchdog_drop != 0 ? 0U : port.storm)) >> queue & 1) != 0;
    }
    bool storm_drops(const Port& port, unsigned queue) const {
        return (port.storm >> queue & 1) != 0 && in_.watchdog_drop != 0;
    }
    unsigned open_queues(const Port& port) const {
        if (!port.up) return 0;
        return port.busy & ~(port.paused & ~(in_.watchdog_drop != 0 ? 0U : port.storm));
    }

    // receiving.hpp: the ends of flows
    std::uint32_t payload(const Flow& flow, std::uint32_t number, std::uint32_t seq) const;
    Place place_of(std::int64_t message, std::uint32_t seq) const;
    bool begins_message(const Flow& flow, std::uint32_t number, std::uint32_t seq) const;
    std::uint32_t next_seq_of(const Flow& flow, std::uint32_t number);
    Bytes wire_of(const Flow& flow, std::uint32_t number, std::uint32_t seq) const;
    Bytes next_wire_of(const Flow& flow, std::uint32_t number);
    bool may_send(const Flow& flow, std::uint32_t number);
    void offer(std::uint32_t number, Flow& flow, Time now);
    void join_ring(std::uint32_t number, Flow& flow, Time now);
    void push_flow(Queue& queue, std::uint32_t number, Flow& flow);
    std::uint32_t take_from_flow(std::uint32_t number, Port& port, Queue& queue, Time now, Time& gap);
    void pass_turn(Queue& queue, std::uint32_t number, Flow& flow, bool more);
    std::uint32_t new_packet(const Flow& flow, std::uint32_t number, PacketKind kind, std::uint32_t seq, Bytes wire,
                             Time now);
    void deliver(std::uint32_t id, std::uint32_t port, Time now);
    void count_arrival(const Packet& packet, Flow& flow, Time now);
    void answer(Packet& packet, const Flow& flow, Time now);
    void finish(std::uint32_t number, Flow& flow, Time now);
    void delivered(std::uint32_t number, const Flow& flow, Time now);

    // recovery.cpp: flows with details
    void add_details(std::uint32_t number, const ClassRules& rules);
    Detail& detail(std::uint32_t number) { return details_[detail_of_[number]]; }
    Selective& selective(std::uint32_t number, const Flow& flow);
    bool acknowledges_singly(const ClassRules& rules) const {
        return rules.transport != Transport::go_back_n && rules.ack_every == 1;
    }
    Bytes wire_between(const Flow& flow, std::uint32_t number, std::uint32_t from, std::uint32_t to) const;
    std::uint32_t take_lost(Flow& flow, std::uint32_t number);
    void note_sent(Flow& flow, std::uint32_t number, Bytes wire, Time now);
    bool may_go_on(const Flow& flow, std::uint32_t number, Time now);
    void refresh(std::uint32_t number, Flow& flow, Time now);
    void refresh_and_kick(std::uint32_t number, Flow& flow, Time now);
    void leave_ring(std::uint32_t number, Flow& flow);
    void send_control(const Flow& flow, std::uint32_t number, PacketKind kind, std::uint32_t seq, Time now);
    void deliver_with_care(std::uint32_t id, Flow& flow, Time now);
    void deliver_data(const Packet& packet, Flow& flow, Time now);
    void receive_in_order(const Packet& packet, Flow& flow, Time now);
    void receive_anywhere(const Packet& packet, Flow& flow, Time now);
    void accept(std::uint32_t number, Flow& flow, std::uint32_t acknowledged, Time now);
    void send_ack(std::uint32_t number, const Flow& flow, std::uint32_t seq, Time now);
    void acknowledged(std::uint32_t number, Flow& flow, std::uint32_t seq, Time now);
    bool note_single_ack(std::uint32_t number, Flow& flow, std::uint32_t seq);
    bool note_sparse_ack(std::uint32_t number, Flow& flow, std::uint32_t seq);
    void refused(std::uint32_t number, Flow& flow, std::uint32_t seq, Time now);
    void lose_packet(Flow& flow, Selective& selective, std::uint32_t seq);
    void timeout(std::uint32_t number, Time now);

    // congestion.cpp: rates and admission
    RateLimiter& limiter(std::uint32_t number, const Flow& flow);
    void pace(Detail& detail, Bytes wire, Time now);
    void fade(RateLimiter& limiter, Time now) const;
    bool cut(RateLimiter& limiter, Time now) const;
    void increase(RateLimiter& limiter) const;
    void notified(std::uint32_t number, const Flow& flow, Time now);
    void rate_timer(std::uint32_t number, Time now);
    void arm_timer(std::uint32_t number, Detail& detail, Time now);
    void pace_over(std::uint32_t number, Time now);
    Clearance& clearance(const Flow& flow) { return clearances_[(std::uint64_t{flow.destination} << 8) | flow.traffic_class]; }
    void request(std::uint32_t number, const Flow& flow, Time now);
    void clear_next(const Flow& flow, Time now);

    Queue& queue_at(std::uint32_t port, unsigned queue) { return queues_[port * queue_count_ + queue]; }
    QueueCounters& counters_at(std::uint32_t port, unsigned queue) { return counters_[port * queue_count_ + queue]; }
    Ingress& ingress_at(std::uint32_t port, unsigned queue) { return ingresses_[port * queue_count_ + queue]; }

    const FabricScenario in_;
    EventQueue events_;
    PacketPool packets_;
    Routes routes_;
    std::size_t queue_count_;
    HugeVector<Port> ports_;
    HugeVector<Queue> queues_;         // [P, Q]
    HugeVector<Ingress> ingresses_;    // [P, Q]
    std::vector<Node> nodes_;
    HugeVector<Endpoint> endpoints_;   // by port
    std::vector<Depth> depth_;          // by port
    std::vector<Time> clear_at_;        // when a port will have sent all it holds, if nothing keeps it from it
    std::vector<std::int64_t> signal_;  // depth as adaptive routing sees it
    HugeVector<Flow> flows_;
    std::vector<std::uint32_t> detail_of_;  // by flow; empty: all are plain
    std::vector<Detail> details_;
    std::unordered_map<std::uint64_t, Clearance> clearances_;  // by (endpoint, class)
    std::vector<Time> look_at_;  // [P, Q] of the WATCHDOG events that count; empty without a watchdog
    HugeVector<ColdPort> cold_;
    HugeVector<QueueCounters> counters_;  // [P, Q]
    std::vector<std::uint32_t> turns_;     // [switches, leaves, data or not], of spraying in turn; empty where nothing is
    std::vector<Flowlet> flowlets_;
    std::array<ClassRules, 16> classes_{};
    std::array<QueueRules, kMostQueues> queue_rules_{};
    unsigned strict_queues_ = 0;
    bool signal_follows_ = false;     // signal_ is kept at every change of depth
    std::int64_t ar_most_ = 0;
    bool gaps_ = false;
    bool fetches_ = false;            // the state is large: ask for what comes next

    Column<std::int64_t> message_, start_, delay_;
    Column<std::uint32_t> pin_;
    std::vector<std::uint32_t> start_order_;  // flows without predecessors by time; empty: by number
    std::size_t next_start_ = 0, starts_ = 0;
    std::uint32_t next_starting_ = kNone;     // flow of the pending START of that order
    std::vector<std::uint32_t> waiting_;      // predecessors not delivered, by flow; empty: no dependencies
    std::vector<Time> not_before_;           // when the last predecessor so far was delivered

    Time now_;
    const char* status_ = nullptr;  // how it ended
    std::int64_t events_done_ = 0, flows_done_ = 0;
    std::int64_t data_hops_ = 0, data_sent_ = 0, data_delivered_ = 0, data_dropped_ = 0, payload_delivered_ = 0;
    Bytes wire_sent_, wire_delivered_, wire_dropped_;
    std::vector<std::int64_t> flow_started_, flow_delivered_, flow_finish_;
    std::vector<std::uint32_t> flow_retransmitted_;
    std::vector<std::int64_t> latency_counts_;
    std::vector<std::int64_t> sample_time_, sample_tx_, sample_depth_;
    std::shared_ptr<const FabricResult> result_;  // once it has ended
};

}  // namespace fourlane::fabric
