// Tests of the packet simulator without Python, so that sanitizers see it (scripts/sanitize): closed forms, random
// scenarios, and arrays that no scenario would hold. That results are right is tested in tests/property, against the
// reference; here they must add up, be the same twice, and come without touching memory out of bounds.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <map>
#include <numeric>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "fabric_scenarios.hpp"
#include "fourlane/fabric.hpp"

namespace {

using fourlane::FabricResult;
using fourlane::FabricScenario;
using fourlane::FabricSimulation;
using fourlane::test::Arrays;
using fourlane::test::Draw;
using fourlane::test::LeafSpine;
using fourlane::test::visit_arrays;
using fourlane::test::visit_numbers;
using fourlane::test::visit_scalars;

int failures = 0;

void expect(bool condition, const char* what, std::uint32_t seed) {
    if (condition) return;
    ++failures;
    std::printf("FAILED: %s, seed %u\n", what, seed);
}

std::int64_t sum(const std::vector<std::int64_t>& values) {
    return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

// Everything that a simulation found.
auto all_of(const FabricResult& r) {
    return std::tie(r.status, r.time, r.events, r.flows_done, r.data_hops, r.data_packets_sent,
                    r.data_packets_delivered, r.data_packets_dropped, r.delivered_payload, r.wire_bytes_sent,
                    r.wire_bytes_delivered, r.wire_bytes_dropped, r.wire_bytes_queued, r.flow_started,
                    r.flow_delivered, r.flow_finish, r.flow_retransmitted, r.flow_reorder, r.latency_counts,
                    r.port_tx_bytes, r.port_tx_packets, r.port_drops, r.port_marks, r.port_trims, r.port_pauses,
                    r.port_paused_ps, r.port_depth, r.port_max_depth, r.port_paused, r.sample_time, r.sample_tx,
                    r.sample_depth);
}

// Closed forms -----------------------------------------------------------------------------------------------------

// When the last flow is done, of flows of `size` bytes from the hosts 8, 9, ... to host 0: nine leaves of eight hosts.
std::int64_t incast(std::size_t senders, std::int64_t size) {
    Arrays arrays = leaf_spine(LeafSpine{9, 8, 8});
    for (std::size_t i = 0; i < senders; ++i) add_flow(arrays, 8 + i, 0, size);
    FabricSimulation simulation(view(arrays));
    simulation.advance(std::int64_t{1} << 40);
    const auto found = simulation.result();
    expect(found->status == "done" && found->wire_bytes_dropped == 0, "a lossless incast ends", 0);
    return *std::ranges::max_element(found->flow_finish);
}

// Four cables of 100 ns and three switches of 500 ns each way; 83.2 ns a packet of 4,160 bytes, 1.28 ns an
// acknowledgement. The last link is busy from the first packet to the last.
std::int64_t bound(std::int64_t packets) {
    constexpr std::int64_t one_way = 4 * 100'000 + 3 * 500'000;
    return packets * 83'200 + 3 * 83'200 + one_way + one_way + 4 * 1280;
}

void lossless_flows_take_what_the_closed_form_says() {
    static_assert(4160 * 20 == 83'200 && 64 * 20 == 1280);
    expect(bound(1) == 4'137'920 && bound(64 * 16) == 89'251'520, "the closed form", 0);
    expect(incast(1, 4096) == bound(1), "one packet", 0);
    expect(incast(1, 1 << 20) == bound(256), "one flow of 1 MiB", 0);
    expect(incast(64, 64 << 10) == bound(64 * 16), "64 flows of 64 KiB to one host", 0);
    expect(incast(64, 256 << 10) == bound(64 * 64), "64 flows of 256 KiB to one host", 0);
}

// Large enough for the simulator to fetch memory ahead, with ids of flows beyond those of ports.
void an_all_to_all_delivers_everything() {
    Arrays arrays = leaf_spine(LeafSpine{16, 8, 8});
    arrays.class_routing = {4};
    for (std::size_t step = 1; step < 128; ++step) {
        for (std::size_t from = 0; from < 128; ++from) add_flow(arrays, from, (from + step) % 128, 5000);
    }
    FabricSimulation simulation(view(arrays));
    simulation.advance(std::int64_t{1} << 40);
    const auto found = simulation.result();
    expect(found->status == "done" && found->delivered_payload == 128 * 127 * 5000, "an all-to-all", 0);
}

// Random scenarios -------------------------------------------------------------------------------------------------

// What random scenarios have seen, so that none of it stays untried unnoticed.
struct Seen {
    std::map<std::string, int> statuses;
    std::int64_t drops = 0, marks = 0, trims = 0, pauses = 0, retransmitted = 0, reordered = 0, samples = 0;

    void add(const FabricResult& found) {
        ++statuses[found.status];
        drops += sum(found.port_drops);
        marks += sum(found.port_marks);
        trims += sum(found.port_trims);
        pauses += sum(found.port_pauses);
        for (const std::uint32_t count : found.flow_retransmitted) retransmitted += count;
        for (const std::uint32_t depth : found.flow_reorder) reordered += depth;
        samples += static_cast<std::int64_t>(found.sample_time.size());
    }
};

// Everything sent was delivered or dropped or is on its way, and the simulation ended where it says it did.
void expect_adds_up(const FabricScenario& in, const FabricResult& found, std::uint32_t seed) {
    expect(found.wire_bytes_sent == found.wire_bytes_delivered + found.wire_bytes_dropped + found.wire_bytes_queued,
           "bytes sent = delivered + dropped + queued", seed);
    expect(found.data_packets_sent >= found.data_packets_delivered + found.data_packets_dropped, "packets sent", seed);
    expect(found.events <= in.max_events && found.time <= in.max_time, "the limits of events and time", seed);
    const auto flows = static_cast<std::int64_t>(in.flow_src_port.size());
    const std::int64_t payload = std::accumulate(in.flow_size.begin(), in.flow_size.end(), std::int64_t{0});
    if (found.status == "done") {
        expect(found.flows_done == flows && found.delivered_payload == payload, "all is delivered when done", seed);
    } else {
        expect(found.flows_done < flows && found.delivered_payload <= payload, "some flow is not done", seed);
        expect(found.status == "stuck" || (found.status == "time" && found.time == in.max_time) ||
                   (found.status == "budget" && found.events == in.max_events),
               "how it ended", seed);
    }
    for (std::size_t f = 0; f < in.flow_src_port.size(); ++f) {
        if (found.flow_finish[f] < 0) continue;
        expect(found.flow_started[f] >= 0 && found.flow_started[f] <= found.flow_finish[f], "a flow's times", seed);
    }
}

// Run a scenario twice at once, in one go and in steps with looks in between, and see that nothing differs.
void expect_sound(Arrays& arrays, std::uint32_t seed, Seen& seen) {
    const FabricScenario in = view(arrays);
    FabricSimulation stepped(in), whole(in);
    expect(whole.advance(std::int64_t{1} << 40), "an end in one go", seed);
    for (std::int64_t step = 1 + seed % 7; !stepped.advance(step); step *= 2) {
        const auto now = stepped.result();
        expect(now->status == "running" && now->events == stepped.progress().events, "a look before the end", seed);
        expect(now->wire_bytes_sent == now->wire_bytes_delivered + now->wire_bytes_dropped + now->wire_bytes_queued,
               "bytes before the end", seed);
    }
    const auto found = whole.result();
    expect(all_of(*found) == all_of(*stepped.result()), "the same result twice", seed);
    expect(whole.result() == found && whole.advance(1), "an end that stays", seed);
    expect_adds_up(in, *found, seed);
    seen.add(*found);
}

void random_scenarios_end_add_up_and_repeat() {
    Seen seen;
    for (std::uint32_t seed = 1; seed <= 600; ++seed) {
        Arrays arrays = fourlane::test::random_scenario(seed);
        expect_sound(arrays, seed, seen);
    }
    for (const char* status : {"done", "stuck", "time", "budget"}) {
        expect(seen.statuses[status] > 5, status, static_cast<std::uint32_t>(seen.statuses[status]));
    }
    expect(seen.drops > 0 && seen.marks > 0 && seen.trims > 0 && seen.pauses > 0, "drops, marks, trims, pauses", 0);
    expect(seen.retransmitted > 0 && seen.reordered > 0 && seen.samples > 0, "repeats, reordering, samples", 0);
    std::printf("random scenarios: %d done, %d stuck, %d out of time, %d out of events\n", seen.statuses["done"],
                seen.statuses["stuck"], seen.statuses["time"], seen.statuses["budget"]);
}

// Large enough for the simulator to fetch memory ahead, with more flows than ports.
void a_large_network_ends_adds_up_and_repeats() {
    Seen seen;
    for (std::uint32_t seed = 1; seed <= 6; ++seed) {
        Draw draw(seed);
        Arrays arrays = fourlane::test::random_scenario(draw, LeafSpine{10, 12, 12}, 8, 600);
        arrays.scalars.max_events = 30'000;
        expect_sound(arrays, seed, seen);
    }
}

// Hostile arrays ---------------------------------------------------------------------------------------------------

constexpr std::int64_t kHostileEvents = 5000;

template <typename T>
void spoil(Draw& draw, std::vector<T>& array) {
    constexpr std::array<std::int64_t, 18> values = {
        std::numeric_limits<std::int64_t>::min(), -(std::int64_t{1} << 31), -2, -1, 0, 1, 2, 3, 7, 8, 255, 1 << 16,
        (std::int64_t{1} << 31) - 1, std::int64_t{1} << 31, std::int64_t{1} << 40, std::int64_t{1} << 44,
        std::int64_t{1} << 60, std::numeric_limits<std::int64_t>::max()};
    const std::size_t form = draw.below(8);
    if (form == 0 && !array.empty()) {
        array.pop_back();
    } else if (form == 1) {
        array.push_back(T{0});
    } else if (form == 2) {
        array.clear();
    } else {
        for (std::size_t count = 1 + draw.below(3); count > 0 && !array.empty(); --count) {
            array[draw.below(array.size())] = static_cast<T>(values[draw.below(values.size())]);
        }
    }
    array.shrink_to_fit();
}

void spoil_scalar(Draw& draw, std::int64_t& scalar) {
    scalar = draw.pick({std::numeric_limits<std::int64_t>::min(), -1, 0, 1, 2, 64, 4096, 1 << 16, std::int64_t{1} << 31,
                        std::int64_t{1} << 44, std::int64_t{1} << 60, std::numeric_limits<std::int64_t>::max()});
}

void spoil_number(Draw& draw, double& number) {
    number = draw.one_of({std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(), -1.0, 0.0,
                        1e-300, 0.5, 1.0, 1e15, 1e300});
}

// Spoil one array or number, chosen by lot among all.
void spoil_one(Draw& draw, Arrays& arrays) {
    FabricScenario ignored;
    std::size_t count = 0;
    const auto add = [&](const char*, auto&...) { ++count; };
    visit_arrays(arrays, ignored, add);
    visit_scalars(arrays.scalars, add);
    visit_numbers(arrays.scalars.dcqcn, add);
    std::size_t left = draw.below(count);
    const auto chosen = [&] { return left-- == 0; };
    visit_arrays(arrays, ignored, [&](const char*, auto& array, auto&) { if (chosen()) spoil(draw, array); });
    visit_scalars(arrays.scalars, [&](const char*, std::int64_t& scalar) { if (chosen()) spoil_scalar(draw, scalar); });
    visit_numbers(arrays.scalars.dcqcn, [&](const char*, double& number) { if (chosen()) spoil_number(draw, number); });
}

// Whether a refusal begins with the name of something in a scenario.
bool names_an_array(Arrays& arrays, std::string_view refusal) {
    FabricScenario ignored;
    bool found = false;
    const std::string_view name = refusal.substr(0, refusal.find_first_of("[:"));
    const auto look = [&](const char* one, auto&...) { found = found || name == one; };
    visit_arrays(arrays, ignored, look);
    visit_scalars(arrays.scalars, look);
    visit_numbers(arrays.scalars.dcqcn, look);
    return found;
}

// Whether spoilt arrays were run. They end; what they give makes no sense and need only be within the limits.
bool survives(Arrays& arrays, std::uint32_t seed) {
    const FabricScenario in = view(arrays);
    try {
        FabricSimulation simulation(in);
        expect(simulation.advance(20 * kHostileEvents), "an end of spoilt arrays", seed);
        expect(simulation.result()->events <= in.max_events, "the limit of events", seed);
        return true;
    } catch (const std::invalid_argument& error) {
        if (!names_an_array(arrays, error.what())) std::printf("%s\n", error.what());
        expect(names_an_array(arrays, error.what()), "a refusal that names the array", seed);
        return false;
    }
}

void spoilt_arrays_are_refused_by_name_or_run_to_an_end() {
    int ran = 0;
    constexpr int count = 4000;
    for (std::uint32_t seed = 1; seed <= count; ++seed) {
        Arrays arrays = fourlane::test::random_scenario(1000 + seed);
        Draw draw(seed);
        for (std::size_t times = 1 + draw.below(3); times > 0; --times) spoil_one(draw, arrays);
        FabricScenario& scalars = arrays.scalars;
        scalars.max_events = std::min(scalars.max_events, kHostileEvents);
        scalars.flowlet_entries = std::min<std::int64_t>(scalars.flowlet_entries, 4096);  // more is allowed, and slow to make
        ran += survives(arrays, seed) ? 1 : 0;
    }
    expect(ran > count / 10 && ran < count * 9 / 10, "some spoilt arrays refused, some run", static_cast<std::uint32_t>(ran));
    std::printf("spoilt arrays: %d of %d run, the others refused by name\n", ran, count);
}

void faulty_arrays_are_refused_by_their_name() {
    const auto refused = [](const std::string& name, const auto& change) {
        Arrays arrays = leaf_spine(LeafSpine{2, 2, 1});
        add_flow(arrays, 0, 3, 10'000);
        change(arrays);
        try {
            FabricSimulation simulation(view(arrays));
        } catch (const std::invalid_argument& fault) {
            return expect(std::string(fault.what()).starts_with(name), name.c_str(), 0);
        }
        expect(false, name.c_str(), 0);
    };
    refused("port_peer", [](Arrays& a) { a.port_peer[0] = 99; });
    refused("route_ports", [](Arrays& a) { a.route_ports[0] = 0; });
    refused("route_first", [](Arrays& a) { a.route_first.pop_back(); });
    refused("flow_src_port", [](Arrays& a) { a.flow_src_port[0] = -1; });
    refused("flow_dst_port", [](Arrays& a) { a.flow_dst_port[0] = 5; });
    refused("flow_size", [](Arrays& a) { a.flow_size[0] = -1; });
    refused("flow_after", [](Arrays& a) { a.flow_after_first = {0, 1}, a.flow_after = {7}; });
    refused("class_queue", [](Arrays& a) { a.class_queue[0] = 1; });
    refused("queue_weight", [](Arrays& a) { a.queue_weight[0] = 100; });
    refused("leaf_index", [](Arrays& a) { a.leaf_index[0] = 1 << 30; });
    refused("epoch_port_up", [](Arrays& a) { a.epoch_port_up.pop_back(); });
    refused("node_shared", [](Arrays& a) { a.node_shared[4] = std::int64_t{1} << 40; });
    refused("sample_ports", [](Arrays& a) { a.sample_ports = {-1}; });
    refused("dcqcn_g", [](Arrays& a) { a.scalars.dcqcn.g = 1e-9; });
    refused("mtu", [](Arrays& a) { a.scalars.mtu = 0; });
}

// The most that each array and number may be, by trying: powers of two, less one, from above.
template <typename T>
void raise(Arrays& arrays, std::vector<T>& array) {
    const std::vector<T> before = array;
    for (int power = std::numeric_limits<T>::digits - 1; power >= 0; --power) {
        std::ranges::fill(array, static_cast<T>(T{1} << power));
        try {
            FabricSimulation accepted(view(arrays));
            return;
        } catch (const std::invalid_argument&) {
            array = before;
        }
    }
}

// Raise all that says how much and not which, to the most the check lets through, and see that sums do not overflow.
void the_largest_amounts_that_are_accepted_do_not_overflow() {
    constexpr std::string_view amounts[] = {
        "node_latency", "node_shared", "port_ps_q16", "port_prop", "port_headroom", "port_tx_latency",
        "port_rx_latency", "port_message_gap", "queue_cap_q16", "queue_alpha_q16", "queue_reserved", "queue_kmin",
        "queue_kmax", "class_window", "class_rto", "flow_start", "flow_delay"};
    for (std::uint32_t seed = 1; seed <= 400; ++seed) {
        Arrays arrays = fourlane::test::random_scenario(5000 + seed);
        Draw draw(seed);
        FabricScenario ignored;
        FabricScenario& to = arrays.scalars;
        to.max_time = fourlane::test::kNever;
        to.max_events = 3000;
        to.sample_interval = to.sample_interval == 0 ? 0 : std::int64_t{1} << 60;
        to.watchdog_detection = to.watchdog_detection == 0 ? 0 : std::int64_t{1} << 60;
        to.pfc_response = std::int64_t{1} << 60;
        to.dcqcn.min_rate = 1;
        if (draw.coin()) to.mtu = (1 << 16) - to.header;
        for (std::int64_t& weight : arrays.queue_weight) weight = weight == 0 ? 0 : std::int64_t{1} << 31;
        visit_arrays(arrays, ignored, [&](const char* name, auto& array, auto&) {
            if (std::ranges::find(amounts, name) != std::end(amounts) && draw.coin()) raise(arrays, array);
        });
        if (draw.coin()) std::ranges::fill(arrays.flow_size, std::int64_t{1} << 24);
        for (std::size_t f = 0; f < arrays.flow_size.size(); ++f) {
            if (arrays.flow_src_port[f] < 0) arrays.flow_size[f] = 0;
        }
        expect(survives(arrays, seed), "the largest amounts run", seed);
    }
}

// The slowest link there may be, behind a switch that cuts through, and 50 MB queued for it in the largest packets.
void a_deep_queue_before_the_slowest_link_does_not_overflow() {
    Arrays arrays = leaf_spine(LeafSpine{1, 4, 0});
    arrays.scalars.mtu = (1 << 16) - arrays.scalars.header;
    arrays.port_ps_q16[0] = arrays.port_ps_q16[static_cast<std::size_t>(arrays.port_peer[0])] = std::int64_t{1} << 40;
    arrays.node_cut_through[4] = 1;
    for (std::size_t source = 1; source < 4; ++source) add_flow(arrays, source, 0, 1 << 24);
    const FabricScenario in = view(arrays);
    FabricSimulation simulation(in);
    expect(simulation.advance(1 << 20), "an end", 0);
    expect_adds_up(in, *simulation.result(), 0);
    expect(simulation.result()->status == "done", "a slow link is done in the end", 0);
}

// One packet a round trip of a month, each with a CNP, and periods of a picosecond: the pause is not counted through.
void long_pauses_between_cnps_cost_no_time() {
    for (const double g : {0.0, 1.0 / (1 << 20), 1.0}) {
        Arrays arrays = leaf_spine(LeafSpine{1, 2, 0});
        std::ranges::fill(arrays.port_prop, std::int64_t{1} << 56);
        arrays.class_cc = {1}, arrays.class_ecn = {1}, arrays.class_window = {1};
        arrays.queue_kmin = {0};
        arrays.scalars.dcqcn.g = g;
        arrays.scalars.dcqcn.timer = std::int64_t{1} << 50;
        add_flow(arrays, 0, 1, 8 * 4096);
        FabricSimulation simulation(view(arrays));
        expect(simulation.advance(1 << 20), "an end", 0);
        const auto found = simulation.result();
        expect(found->status == "done" && sum(found->port_marks) == 8, "every packet marked", 0);
    }
}

}  // namespace

int main() {
    std::setvbuf(stdout, nullptr, _IOLBF, 1 << 12);
    lossless_flows_take_what_the_closed_form_says();
    an_all_to_all_delivers_everything();
    random_scenarios_end_add_up_and_repeat();
    a_large_network_ends_adds_up_and_repeats();
    faulty_arrays_are_refused_by_their_name();
    spoilt_arrays_are_refused_by_name_or_run_to_an_end();
    the_largest_amounts_that_are_accepted_do_not_overflow();
    a_deep_queue_before_the_slowest_link_does_not_overflow();
    long_pauses_between_cnps_cost_no_time();
    std::printf(failures == 0 ? "all passed\n" : "%d failed\n", failures);
    return failures == 0 ? 0 : 1;
}
