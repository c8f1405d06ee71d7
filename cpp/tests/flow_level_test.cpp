// Tests of networks at flow level without Python, so that sanitizers see them (scripts/sanitize): closed forms, random
// scenarios, faulty arrays. That rates are right is tested in tests/unit/twin/flow_level; here they must add up, be the
// same twice, and come without touching memory out of bounds.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "fabric_scenarios.hpp"
#include "fourlane/flow_level.hpp"

namespace {

using fourlane::FlowLevel;
using fourlane::FlowRates;
using fourlane::FlowTimes;
using fourlane::test::Arrays;
using fourlane::test::Draw;
using fourlane::test::LeafSpine;

int failures = 0;

void expect(bool condition, const char* what, std::uint32_t seed) {
    if (condition) return;
    ++failures;
    std::printf("FAILED: %s, seed %u\n", what, seed);
}

std::vector<std::uint32_t> all_flows(const Arrays& arrays) {
    std::vector<std::uint32_t> all(arrays.flow_size.size());
    std::iota(all.begin(), all.end(), 0U);
    return all;
}

FlowTimes run(Arrays& arrays, double tolerance) {
    FlowLevel simulation(view(arrays), 0, tolerance);
    int rounds = 0;
    while (!simulation.advance()) {
        if (++rounds > 100'000) throw std::runtime_error("it does not end");
    }
    return simulation.times();
}

// 64 senders to one host: the same closed form that the packet simulator gives.
void an_incast_takes_what_the_closed_form_says() {
    Arrays arrays = leaf_spine(LeafSpine{9, 8, 8});
    for (std::size_t i = 0; i < 64; ++i) add_flow(arrays, 8 + i, 0, 64 << 10);
    const FlowTimes found = run(arrays, 0);
    const double last = *std::ranges::max_element(found.finished);
    expect(std::abs(last - 89.25152e-6) < 0.01e-6, "64 flows of 64 KiB to one host", 0);
}

void check(Arrays& arrays, std::uint32_t seed) {
    arrays.scalars.ack_wire = 1;
    const bool small_acks = arrays.scalars.header > 0;
    const auto scenario = view(arrays);
    for (const std::size_t epoch : {std::size_t{0}, arrays.epoch_time.size() - 1}) {
        const FlowLevel one(scenario, epoch, 0.0), other(scenario, epoch, 0.0);
        const FlowRates rates = one.rates(all_flows(arrays)), again = other.rates(all_flows(arrays));
        expect(rates.rate == again.rate && rates.port_rate == again.port_rate, "the same twice", seed);
        expect(std::ranges::all_of(rates.rate, [](double rate) { return std::isfinite(rate) && rate >= 0; }), "rates", seed);
        const std::size_t queues = arrays.queue_weight.size();
        for (std::size_t p = 0; p < arrays.port_node.size(); ++p) {
            const auto first = rates.port_rate.begin() + static_cast<std::ptrdiff_t>(p * queues);
            const double used = std::accumulate(first, first + static_cast<std::ptrdiff_t>(queues), 0.0);
            const double capacity = 65536e12 / static_cast<double>(arrays.port_ps_q16[p]);
            // A trunk's load is told apart by the room of its ports alone, whatever they lead to.
            expect(!small_acks || used <= capacity * 1.5, "no port sends much more than it can", seed);
        }
        const std::vector<std::uint32_t> none;
        expect(std::ranges::all_of(one.rates(none).rate, [](double rate) { return rate == 0; }), "none", seed);
    }
}

void random_scenarios_add_up_and_end() {
    for (std::uint32_t seed = 0; seed < 1500; ++seed) {
        Arrays arrays = fourlane::test::random_scenario(seed);
        check(arrays, seed);
        const bool waits = !arrays.flow_after.empty();
        const FlowTimes exact = run(arrays, 0), rough = run(arrays, 0.1), again = run(arrays, 0);
        expect(exact.finished == again.finished && exact.port_bytes == again.port_bytes, "the same twice", seed);
        expect(exact.rounds >= 0 && rough.rounds >= 0, "rounds", seed);
        if (waits) continue;  // now and then in a circle
        const auto ended = [](double time) { return time >= 0; };
        expect(std::ranges::all_of(exact.finished, ended) && std::ranges::all_of(rough.finished, ended), "an end", seed);
    }
}

void a_large_network_adds_up() {
    Draw draw(7);
    Arrays arrays = fourlane::test::random_scenario(draw, LeafSpine{10, 12, 12}, 8, 600);
    check(arrays, 7);
    run(arrays, 0.01);
}

void faulty_arrays_are_refused() {
    Arrays arrays = leaf_spine(LeafSpine{2, 2, 1});
    add_flow(arrays, 0, 2, 4096);
    arrays.flow_dst_port[0] = 1 << 20;
    try {
        const FlowLevel made(view(arrays), 0, 0.0);
        expect(false, "a flow to nowhere is refused", 0);
    } catch (const std::invalid_argument& error) {
        expect(std::string(error.what()).starts_with("flow_dst_port"), "by its name", 0);
    }
}

}  // namespace

int main() {
    std::setvbuf(stdout, nullptr, _IOLBF, 1 << 12);
    an_incast_takes_what_the_closed_form_says();
    random_scenarios_add_up_and_end();
    a_large_network_adds_up();
    faulty_arrays_are_refused();
    std::printf(failures == 0 ? "all passed\n" : "%d failed\n", failures);
    return failures == 0 ? 0 : 1;
}
