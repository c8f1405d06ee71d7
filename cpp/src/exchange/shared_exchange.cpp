#include "fourlane/shared_exchange.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "fourlane/token_rows.hpp"

namespace fourlane {
namespace {

// How many cores this process may use.
std::size_t cores() {
    cpu_set_t set;
    return ::sched_getaffinity(0, sizeof(set), &set) == 0 ? static_cast<std::size_t>(CPU_COUNT(&set)) : 1;
}

std::size_t unsigned_of(std::int64_t value) { return static_cast<std::size_t>(value); }

}  // namespace

SharedExchange::SharedExchange(int rank, std::vector<std::shared_ptr<SharedSegment>> segments,
                               std::vector<SharedPeer> peers, Waiting waiting)
    : process_(::getpid()), rank_(rank), segments_(std::move(segments)), peers_(std::move(peers)), waiting_(waiting),
      could_part_(segments_.size() <= cores()) {
    if (peers_.size() != segments_.size() || rank < 0 || static_cast<std::size_t>(rank) >= segments_.size()) {
        throw std::invalid_argument("expected a segment and a peer for each rank");
    }
    awaited_.reserve(segments_.size());
}

SharedExchange::~SharedExchange() {
    for (const SharedPeer& peer : peers_) {
        if (peer.socket >= 0) ::close(peer.socket);
        if (peer.process >= 0) ::close(peer.process);
    }
}

std::uint64_t SharedExchange::give(std::uint32_t kind, std::span<const std::byte> mine) {
    if (given_ - collected_ > 1) throw std::logic_error("two operations are not collected yet");
    if (mine.size() > own().shape().gather_bytes) throw std::length_error("more bytes than fit in a gather slot");
    std::byte* const slot = own().gather_slot(given_);
    const GatherHeader header{mine.size(), kind};
    std::memcpy(slot, &header, sizeof(header));
    if (!mine.empty()) std::memcpy(slot + sizeof(header), mine.data(), mine.size());
    own().gathered().value.store(++given_, std::memory_order_seq_cst);
    wake_all();
    return given_ - 1;
}

SharedReport SharedExchange::collect(std::uint64_t operation, std::uint32_t kind, std::span<std::byte> everybody,
                                     std::chrono::nanoseconds patience) {
    if (operation != collected_) throw std::logic_error("operations are collected in their order");
    const std::size_t bytes = everybody.size() / ranks();
    awaited_.clear();
    for (std::size_t peer = 0; peer < ranks(); ++peer) {
        awaited_.push_back({&segments_[peer]->gathered(), operation + 1, static_cast<int>(peer)});
    }
    SharedReport report = await(patience);
    if (report.end != SharedEnd::done) return report;
    for (std::size_t peer = 0; peer < ranks(); ++peer) {
        const std::byte* const slot = segments_[peer]->gather_slot(operation);
        GatherHeader header;
        std::memcpy(&header, slot, sizeof(header));
        if (header.kind != kind || header.bytes != bytes) return {SharedEnd::unexpected, {static_cast<int>(peer)}};
        if (bytes != 0) std::memcpy(everybody.data() + peer * bytes, slot + sizeof(header), bytes);
    }
    ++collected_;
    return report;
}

void SharedExchange::send_rows(std::uint64_t dispatch, const std::byte* x, std::span<const std::int64_t> rows,
                               const RowRoutes& routes) {
    std::vector<std::size_t> begin(ranks() + 1);  // where each rank's rows begin among `rows`
    for (std::size_t slot = 0; slot < routes.quota_P.size(); ++slot) {
        begin[slot / routes.slots_per_rank + 1] += unsigned_of(routes.quota_P[slot]);
    }
    for (std::size_t peer = 0; peer < ranks(); ++peer) begin[peer + 1] += begin[peer];
    assert(begin[ranks()] == rows.size());
    // Everybody begins with the next rank, so that not all write to the same one; the others come before oneself.
    for (std::size_t step = 1; step <= ranks(); ++step) {
        const std::size_t peer = (static_cast<std::size_t>(rank_) + step) % ranks();
        if (begin[peer] == begin[peer + 1]) continue;
        const std::int64_t* row = rows.data() + begin[peer];
        for (std::size_t slot = peer * routes.slots_per_rank; slot < (peer + 1) * routes.slots_per_rank; ++slot) {
            std::byte* to = segments_[peer]->received(dispatch) + unsigned_of(routes.first_P[slot]) * routes.row_bytes;
            for (std::int64_t i = 0; i < routes.quota_P[slot]; ++i, ++row, to += routes.row_bytes) {
                std::memcpy(to, x + unsigned_of(*row) * routes.row_bytes, routes.row_bytes);
            }
        }
        set(segments_[peer]->rows_from(static_cast<std::size_t>(rank_), dispatch), dispatch + 1);
        wake(*segments_[peer]);
    }
}

SharedReport SharedExchange::await_rows(std::uint64_t dispatch, std::span<const std::int64_t> rows_G,
                                        std::chrono::nanoseconds patience) {
    awaited_.clear();
    for (std::size_t peer = 0; peer < ranks(); ++peer) {
        if (rows_G[peer] != 0) awaited_.push_back({&own().rows_from(peer, dispatch), dispatch + 1, static_cast<int>(peer)});
    }
    return await(patience);
}

void SharedExchange::give_outputs(std::uint64_t dispatch, std::span<const std::byte> y) {
    std::byte* const output = own().output(dispatch);
    if (!y.empty() && y.data() != output) std::memcpy(output, y.data(), y.size());
    own().computed(dispatch).value.store(dispatch + 1, std::memory_order_seq_cst);
    wake_all();
}

SharedReport SharedExchange::await_outputs(std::uint64_t dispatch, const RowRoutes& routes,
                                           std::chrono::nanoseconds patience) {
    awaited_.clear();
    for (std::size_t peer = 0; peer < ranks(); ++peer) {
        const auto quota = routes.quota_P.subspan(peer * routes.slots_per_rank, routes.slots_per_rank);
        if (std::ranges::all_of(quota, [](std::int64_t rows) { return rows == 0; })) continue;
        awaited_.push_back({&segments_[peer]->computed(dispatch), dispatch + 1, static_cast<int>(peer)});
    }
    return await(patience);
}

// Where the outputs of this rank's rows for a slot begin.
const std::byte* SharedExchange::output_of(std::uint64_t dispatch, const RowRoutes& routes, std::size_t slot) const {
    return segments_[slot / routes.slots_per_rank]->output(dispatch) + unsigned_of(routes.first_P[slot]) * routes.row_bytes;
}

void SharedExchange::sum_outputs(std::uint64_t dispatch, const RowRoutes& routes, std::span<const std::int64_t> order,
                                 RowsView weights, MutableRowsView out, InstructionSet set) const {
    std::vector<const float*> row_of(order.size());  // each (token, k) pair's output
    auto pair = order.begin();
    for (std::size_t slot = 0; slot < routes.quota_P.size(); ++slot) {
        const std::byte* output = output_of(dispatch, routes, slot);
        for (std::int64_t i = 0; i < routes.quota_P[slot]; ++i, ++pair, output += routes.row_bytes) {
            row_of[unsigned_of(*pair)] = reinterpret_cast<const float*>(output);
        }
    }
    weighted_sum_of(row_of, weights, out, set);
}

void SharedExchange::copy_outputs(std::uint64_t dispatch, const RowRoutes& routes, std::byte* out) const {
    for (std::size_t slot = 0; slot < routes.quota_P.size(); ++slot) {
        const std::size_t bytes = unsigned_of(routes.quota_P[slot]) * routes.row_bytes;
        if (bytes != 0) std::memcpy(out, output_of(dispatch, routes, slot), bytes);
        out += bytes;
    }
}

SharedReport SharedExchange::all_to_all(const std::byte* x, std::size_t part, std::chrono::nanoseconds patience) {
    const std::uint64_t operation = exchanged_;
    const auto me = static_cast<std::size_t>(rank_);
    for (std::size_t step = 1; step <= ranks(); ++step) {
        const std::size_t peer = (me + step) % ranks();
        if (part != 0) std::memcpy(segments_[peer]->parts(operation) + me * part, x + peer * part, part);
        SharedFlag& flag = segments_[peer]->part_from(me);
        flag.bytes[operation % kBuffers].store(part, std::memory_order_relaxed);
        set(flag, operation + 1);
        wake(*segments_[peer]);
    }
    return await_parts(part, patience);
}

SharedReport SharedExchange::await_parts(std::size_t part, std::chrono::nanoseconds patience) {
    awaited_.clear();
    for (std::size_t peer = 0; peer < ranks(); ++peer) {
        awaited_.push_back({&own().part_from(peer), exchanged_ + 1, static_cast<int>(peer)});
    }
    SharedReport report = await(patience);
    if (report.end != SharedEnd::done) return report;
    for (std::size_t peer = 0; peer < ranks(); ++peer) {
        if (own().part_from(peer).bytes[exchanged_ % kBuffers].load(std::memory_order_relaxed) != part) {
            return {SharedEnd::unexpected, {static_cast<int>(peer)}};
        }
    }
    ++exchanged_;
    return report;
}

}  // namespace fourlane
