// Tests of the exchange through shared memory with threads as ranks, so that sanitizers see every access
// (scripts/sanitize, scripts/sanitize thread). The ranks have one map of each segment, because ThreadSanitizer tells
// memory by its address.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "fourlane/shared_exchange.hpp"

namespace {

using fourlane::RowRoutes;
using fourlane::SharedEnd;
using fourlane::SharedExchange;
using fourlane::SharedPeer;
using fourlane::SharedSegment;
using namespace std::chrono_literals;

constexpr std::uint32_t kCounts = 1;
constexpr auto kPatience = 20s;

std::atomic<int> failures{0};

void expect(bool condition, const char* what) {
    if (condition) return;
    if (++failures < 20) std::printf("FAILED: %s\n", what);
}

using Group = std::vector<std::unique_ptr<SharedExchange>>;

std::shared_ptr<SharedSegment> segment_for(std::size_t ranks) {
    return SharedSegment::make({static_cast<std::uint32_t>(ranks), 1 << 16, 1 << 22});
}

Group make_group(std::size_t ranks, SharedExchange::Waiting waiting = {}) {
    std::vector<std::shared_ptr<SharedSegment>> segments;
    for (std::size_t rank = 0; rank < ranks; ++rank) segments.push_back(segment_for(ranks));
    std::vector<std::vector<SharedPeer>> peers(ranks, std::vector<SharedPeer>(ranks));
    for (std::size_t a = 0; a < ranks; ++a) {
        for (std::size_t b = a + 1; b < ranks; ++b) {
            int pair[2];
            expect(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "a pair of sockets");
            peers[a][b].socket = pair[0];
            peers[b][a].socket = pair[1];
        }
    }
    Group group;
    for (std::size_t rank = 0; rank < ranks; ++rank) {
        group.push_back(std::make_unique<SharedExchange>(static_cast<int>(rank), segments, peers[rank], waiting));
    }
    return group;
}

void run(Group& group, const std::function<void(SharedExchange&)>& body) {
    std::vector<std::thread> threads;
    for (auto& exchange : group) threads.emplace_back([&] { body(*exchange); });
    for (std::thread& thread : threads) thread.join();
}

// One rank's part in one dispatch, as every rank can work it out: rows of `width` floats.
struct Batch {
    std::size_t width;
    std::size_t tokens;
    std::size_t top_k;
    std::vector<std::int64_t> order;    // pairs in order of slots
    std::vector<std::int64_t> rows;     // their tokens
    std::vector<std::int64_t> quota_P;  // of this rank
    std::vector<std::int64_t> first_P;
    std::vector<std::int64_t> rows_G;  // from each rank to this one
    std::int64_t received = 0;
    std::vector<std::int64_t> slot_of_pair;
};

// Slot of every (token, k) pair of a rank in a dispatch.
std::vector<std::int64_t> slots_of(std::size_t rank, std::uint64_t dispatch, std::size_t slots, std::size_t top_k) {
    std::mt19937 generator(static_cast<std::uint32_t>(rank * 7919 + dispatch * 104'729 + 1));
    const std::size_t most = std::size_t{1} << (generator() % 6);
    const std::size_t tokens = generator() % 4 == 0 ? 0 : generator() % most;
    const std::size_t hot = generator() % 3 == 0 ? 1 : slots;  // now and then all go to one slot
    std::vector<std::int64_t> chosen(tokens * top_k);
    for (auto& slot : chosen) slot = static_cast<std::int64_t>(generator() % hot);
    return chosen;
}

constexpr std::size_t kSlotsPerRank = 3;
constexpr std::size_t kTopK = 2;

Batch batch_of(std::size_t me, std::size_t ranks, std::uint64_t dispatch) {
    const std::size_t slots = ranks * kSlotsPerRank;
    std::vector<std::vector<std::int64_t>> quota_GP(ranks, std::vector<std::int64_t>(slots));
    for (std::size_t rank = 0; rank < ranks; ++rank) {
        for (const std::int64_t slot : slots_of(rank, dispatch, slots, kTopK)) ++quota_GP[rank][static_cast<std::size_t>(slot)];
    }
    Batch batch;
    batch.width = 1 + dispatch % 40;
    batch.slot_of_pair = slots_of(me, dispatch, slots, kTopK);
    batch.tokens = batch.slot_of_pair.size() / kTopK;
    batch.top_k = kTopK;
    batch.order.resize(batch.slot_of_pair.size());
    std::iota(batch.order.begin(), batch.order.end(), 0);
    std::ranges::stable_sort(batch.order, {}, [&](std::int64_t pair) { return batch.slot_of_pair[static_cast<std::size_t>(pair)]; });
    for (const std::int64_t pair : batch.order) batch.rows.push_back(pair / static_cast<std::int64_t>(kTopK));
    batch.quota_P = quota_GP[me];
    batch.rows_G.resize(ranks);
    for (std::size_t slot = 0; slot < slots; ++slot) {
        const std::size_t first_slot = slot / kSlotsPerRank * kSlotsPerRank;
        std::int64_t first = 0;
        for (std::size_t rank = 0; rank < ranks; ++rank) {
            for (std::size_t before = first_slot; before < slot; ++before) first += quota_GP[rank][before];
            if (rank < me) first += quota_GP[rank][slot];
            if (slot / kSlotsPerRank == me) batch.rows_G[rank] += quota_GP[rank][slot];
        }
        batch.first_P.push_back(first);
    }
    batch.received = std::accumulate(batch.rows_G.begin(), batch.rows_G.end(), std::int64_t{0});
    return batch;
}

RowRoutes routes_of(const Batch& batch) {
    return {batch.quota_P, batch.first_P, kSlotsPerRank, batch.width * sizeof(float)};
}

float value_of(std::size_t rank, std::uint64_t dispatch, std::size_t token, std::size_t column) {
    return static_cast<float>(rank * 1000 + token * 10 + column % 7) + static_cast<float>(dispatch % 5) / 8;
}

bool give_counts(SharedExchange& exchange, std::uint64_t dispatch) {
    const std::uint64_t number[2] = {dispatch, static_cast<std::uint64_t>(exchange.rank())};
    return exchange.give(kCounts, std::as_bytes(std::span(number))) == dispatch;
}

void dispatch(SharedExchange& exchange, std::uint64_t number, const Batch& batch) {
    std::vector<std::uint64_t> told(2 * exchange.ranks());
    const auto collected = exchange.collect(number, kCounts, std::as_writable_bytes(std::span(told)), kPatience);
    expect(collected.end == SharedEnd::done, "counts are collected");
    for (std::size_t rank = 0; rank < exchange.ranks(); ++rank) {
        expect(told[2 * rank] == number && told[2 * rank + 1] == rank, "counts are those that were given");
    }
    std::vector<float> x(batch.tokens * batch.width);
    for (std::size_t i = 0; i < x.size(); ++i) {
        x[i] = value_of(static_cast<std::size_t>(exchange.rank()), number, i / batch.width, i % batch.width);
    }
    exchange.send_rows(number, reinterpret_cast<const std::byte*>(x.data()), batch.rows, routes_of(batch));
    expect(exchange.await_rows(number, batch.rows_G, kPatience).end == SharedEnd::done, "rows come");
}

// What is computed: rows of slot s times s + 1. Every row is checked on the way.
void compute(SharedExchange& exchange, std::uint64_t number, const Batch& batch) {
    const auto me = static_cast<std::size_t>(exchange.rank());
    const std::size_t slots = exchange.ranks() * kSlotsPerRank;
    const auto* x = reinterpret_cast<const float*>(exchange.segment(me).received(number));
    std::vector<float> y;
    for (std::size_t slot = me * kSlotsPerRank; slot < (me + 1) * kSlotsPerRank; ++slot) {
        for (std::size_t rank = 0; rank < exchange.ranks(); ++rank) {
            const auto chosen = slots_of(rank, number, slots, kTopK);
            for (std::size_t pair = 0; pair < chosen.size(); ++pair) {
                if (chosen[pair] != static_cast<std::int64_t>(slot)) continue;
                for (std::size_t column = 0; column < batch.width; ++column, ++x) {
                    expect(*x == value_of(rank, number, pair / kTopK, column), "a row lies at its place");
                    y.push_back(*x * static_cast<float>(slot + 1));
                }
            }
        }
    }
    exchange.give_outputs(number, std::as_bytes(std::span(y)));
}

void combine(SharedExchange& exchange, std::uint64_t number, const Batch& batch) {
    const auto me = static_cast<std::size_t>(exchange.rank());
    expect(exchange.await_outputs(number, routes_of(batch), kPatience).end == SharedEnd::done, "outputs come");
    std::vector<float> weights(batch.tokens * batch.top_k), sums(batch.tokens * batch.width);
    for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = 0.25F * static_cast<float>(i % 5 + 1);
    const auto tokens = static_cast<std::int64_t>(batch.tokens), width = static_cast<std::int64_t>(batch.width);
    exchange.sum_outputs(number, routes_of(batch), batch.order, {weights.data(), tokens, kTopK}, {sums.data(), tokens, width},
                         fourlane::InstructionSet::baseline);
    std::vector<float> copied(batch.rows.size() * batch.width);
    exchange.copy_outputs(number, routes_of(batch), reinterpret_cast<std::byte*>(copied.data()));
    for (std::size_t i = 0; i < sums.size(); ++i) {
        const std::size_t token = i / batch.width;
        float sum = 0;
        for (std::size_t k = 0; k < kTopK; ++k) {
            const std::size_t pair = token * kTopK + k;
            sum += value_of(me, number, token, i % batch.width) * static_cast<float>(batch.slot_of_pair[pair] + 1) * weights[pair];
        }
        expect(sums[i] == sum, "a token's sum");
    }
    for (std::size_t i = 0; i < copied.size(); ++i) {
        const std::int64_t pair = batch.order[i / batch.width];
        const auto slot = static_cast<float>(batch.slot_of_pair[static_cast<std::size_t>(pair)] + 1);
        expect(copied[i] == value_of(me, number, static_cast<std::size_t>(batch.rows[i / batch.width]), i % batch.width) * slot,
               "an output that was copied");
    }
}

// Two batches under way at once, as with two micro-batches: each buffer is used again and again. All ranks do the same,
// and now and then the second before the first.
void two_live(SharedExchange& exchange, std::uint64_t rounds) {
    const auto me = static_cast<std::size_t>(exchange.rank());
    std::mt19937 generator(static_cast<std::uint32_t>(me));
    const auto idle = [&] {
        if (generator() % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(generator() % 300));
    };
    for (std::uint64_t number = 0; number < rounds; number += 2) {
        const Batch first = batch_of(me, exchange.ranks(), number), second = batch_of(me, exchange.ranks(), number + 1);
        expect(give_counts(exchange, number), "operations are numbered");
        idle();
        expect(give_counts(exchange, number + 1), "operations are numbered");
        dispatch(exchange, number, first);
        if (number % 3 == 0) {
            dispatch(exchange, number + 1, second);
            compute(exchange, number + 1, second);
            idle();
            compute(exchange, number, first);
            combine(exchange, number + 1, second);
            combine(exchange, number, first);
            continue;
        }
        compute(exchange, number, first);
        idle();
        dispatch(exchange, number + 1, second);
        combine(exchange, number, first);
        compute(exchange, number + 1, second);
        idle();
        combine(exchange, number + 1, second);
    }
}

void rows_reach_their_places_and_sums_are_right() {
    for (const std::size_t ranks : {1UL, 2UL, 3UL, 5UL, 8UL}) {
        Group group = make_group(ranks);
        run(group, [](SharedExchange& exchange) { two_live(exchange, 120); });
    }
}

// Without yielding every wait sleeps at once; a wake-up that got lost would last for the slice.
void nobody_oversleeps() {
    Group group = make_group(3, {0us, 30'000'000us});
    const auto began = std::chrono::steady_clock::now();
    run(group, [](SharedExchange& exchange) { two_live(exchange, 400); });
    expect(std::chrono::steady_clock::now() - began < 25s, "all wake-ups come");
    std::uint64_t sleeps = 0;
    for (const auto& exchange : group) sleeps += exchange->sleeps();
    expect(sleeps > 0, "somebody slept");
}

void plain_all_to_all_brings_every_part() {
    for (const std::size_t ranks : {1UL, 2UL, 4UL, 7UL}) {
        Group group = make_group(ranks);
        run(group, [](SharedExchange& exchange) {
            const auto me = static_cast<std::size_t>(exchange.rank());
            for (std::size_t round = 0; round < 200; ++round) {
                const std::size_t part = round * 37 % 2000;
                std::vector<std::uint8_t> x(part * exchange.ranks());
                for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<std::uint8_t>(me * 3 + (part ? i / part : 0) * 5 + round);
                const auto report = exchange.all_to_all(reinterpret_cast<const std::byte*>(x.data()), part, kPatience);
                expect(report.end == SharedEnd::done, "parts come");
                for (std::size_t i = 0; i < x.size(); ++i) {
                    const auto expected = static_cast<std::uint8_t>(i / part * 3 + me * 5 + round);
                    expect(static_cast<std::uint8_t>(exchange.parts()[i]) == expected, "a part is that of its rank");
                }
            }
        });
    }
}

void parts_of_unlike_sizes_are_an_error() {
    Group group = make_group(2);
    run(group, [](SharedExchange& exchange) {
        const std::vector<std::byte> x(64);
        const auto report = exchange.all_to_all(x.data(), exchange.rank() == 0 ? 16 : 32, kPatience);
        expect(report.end == SharedEnd::unexpected && report.peers == std::vector{1 - exchange.rank()}, "unlike parts");
    });
}

void other_operations_than_expected_are_an_error() {
    Group group = make_group(2);
    run(group, [](SharedExchange& exchange) {
        const std::vector<std::byte> mine(8);
        std::vector<std::byte> all(16);
        const auto kind = static_cast<std::uint32_t>(exchange.rank());
        const auto report = exchange.collect(exchange.give(kind, mine), kind, all, kPatience);
        expect(report.end == SharedEnd::unexpected && report.peers == std::vector{1 - exchange.rank()}, "unlike operations");
    });
}

void who_leaves_is_named_at_once() {
    Group group = make_group(4);
    run(group, [](SharedExchange& exchange) {
        two_live(exchange, 10);
        if (exchange.rank() == 2) return exchange.leave();
        const auto began = std::chrono::steady_clock::now();
        expect(give_counts(exchange, 10), "operations are numbered");
        std::vector<std::byte> all(16 * exchange.ranks());
        const auto report = exchange.collect(10, kCounts, all, kPatience);
        expect(report.end == SharedEnd::gone && std::ranges::count(report.peers, 2) == 1, "the rank that left is named");
        expect(std::chrono::steady_clock::now() - began < 10s, "without waiting for the end of patience");
    });
}

void who_hangs_is_named_when_patience_ends() {
    Group group = make_group(4);
    run(group, [](SharedExchange& exchange) {
        if (exchange.rank() == 1 || exchange.rank() == 3) return;
        expect(give_counts(exchange, 0), "operations are numbered");
        std::vector<std::byte> all(16 * exchange.ranks());
        const auto report = exchange.collect(0, kCounts, all, 200ms);
        expect(report.end == SharedEnd::timed_out && report.peers == std::vector{1, 3}, "those who hang are named");
    });
}

void one_who_leaves_wakes_his_own_wait() {
    Group group = make_group(2);
    std::thread waiting([&] {
        expect(give_counts(*group[0], 0), "operations are numbered");
        std::vector<std::byte> all(32);
        expect(group[0]->collect(0, kCounts, all, kPatience).end == SharedEnd::left, "its own wait ends");
    });
    std::this_thread::sleep_for(20ms);
    group[0]->leave();
    waiting.join();
}

template <typename Error>
bool throws(const std::function<void()>& call) {
    try {
        call();
    } catch (const Error&) {
        return true;
    }
    return false;
}

void what_breaks_the_order_is_refused() {
    Group group = make_group(2);
    SharedExchange& exchange = *group[0];
    const std::vector<std::byte> mine(8), much((1 << 16) + 1);
    std::vector<std::byte> all(16);
    expect(throws<std::length_error>([&] { exchange.give(kCounts, much); }), "more than fits");
    exchange.give(kCounts, mine);
    exchange.give(kCounts, mine);
    expect(throws<std::logic_error>([&] { exchange.give(kCounts, mine); }), "a third before the first is collected");
    expect(throws<std::logic_error>([&] { exchange.collect(1, kCounts, all, kPatience); }), "the second before the first");
}

void a_segment_is_checked_before_it_is_mapped() {
    const auto made = segment_for(3);
    made->gathered().value.store(41);
    const auto mapped = SharedSegment::map(made->descriptor(), 3);
    expect(mapped->gathered().value.load() == 41 && mapped->descriptor() == -1, "two maps of one memory");
    expect(mapped->shape().buffer_bytes == made->shape().buffer_bytes, "its shape");
    expect(throws<std::runtime_error>([&] { SharedSegment::map(made->descriptor(), 4); }), "of a group of another size");
    const int other = ::memfd_create("other", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    expect(::ftruncate(other, 1 << 20) == 0, "another memfd");
    expect(throws<std::runtime_error>([&] { SharedSegment::map(other, 3); }), "something else");
    ::close(other);
    const int descriptor = ::dup(made->descriptor());
    made->close_descriptor();
    expect(::ftruncate(descriptor, 4096) != 0, "nobody can make it smaller");
    ::close(descriptor);
}

void a_forked_child_cannot_spoil_anything() {
    Group group = make_group(2);
    const pid_t child = ::fork();
    if (child == 0) {
        group[0]->leave();  // nothing: the connections are the parent's, too
        group.clear();      // unmaps nothing that may be somebody else's by now
        ::_exit(0);
    }
    int status = 0;
    expect(::waitpid(child, &status, 0) == child && status == 0, "a child lets go of what it inherited");
    run(group, [](SharedExchange& exchange) { two_live(exchange, 4); });
}

}  // namespace

int main() {
    rows_reach_their_places_and_sums_are_right();
    nobody_oversleeps();
    plain_all_to_all_brings_every_part();
    parts_of_unlike_sizes_are_an_error();
    other_operations_than_expected_are_an_error();
    who_leaves_is_named_at_once();
    who_hangs_is_named_when_patience_ends();
    one_who_leaves_wakes_his_own_wait();
    what_breaks_the_order_is_refused();
    a_segment_is_checked_before_it_is_mapped();
    a_forked_child_cannot_spoil_anything();
    if (failures == 0) std::printf("all passed\n");
    return failures == 0 ? 0 : 1;
}
