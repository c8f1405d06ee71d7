// Dispatch, combine and all-to-all between the ranks of one host through shared memory (see shared_segment.hpp).
//
// A row is written once, by its sender, to its final place in the receiver's buffer; outputs are read where the rank
// that computed them put them. All ranks begin the same operations in the same order. Nobody is told that a buffer is
// free again, because it follows:
//
// - dispatch n + 2 uses the buffers of dispatch n. Every rank gives its counts for n + 2 to all when it has done with
//   n - its rows computed, the others' outputs read - and nobody writes rows or outputs of n + 2 before it has
//   collected everybody's counts;
// - gather operation g uses the slot of g - 4. A rank that gives g has collected all up to g - 2, hence everybody has
//   given g - 2 and, by the same rule, collected all up to g - 4;
// - a plain all-to-all k uses the buffers of k - 2. Whoever begins k has everybody's parts of k - 1, and who sent those
//   had done with k - 2.
//
// Flags are stored and loaded so that what was written before a flag was set is seen by whoever sees it set. Waiting
// yields the core for a while, then sleeps in the kernel, in slices, between which it looks whether those it waits for
// have hung up. Nothing here knows Python; one thread at a time uses an exchange, except for `leave`.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "fourlane/panels.hpp"
#include "fourlane/shared_segment.hpp"

namespace fourlane {

// How a wait ended: all came; somebody did not in time; a signal came, wait again; this rank has left; a peer is
// gone; a peer gave something else than expected.
enum class SharedEnd { done, timed_out, interrupted, left, gone, unexpected };

struct SharedReport {
    SharedEnd end = SharedEnd::done;
    std::vector<int> peers;  // who held it up
};

// By what the ranks notice that a peer is gone: a socket to it, and its pidfd (or -1). Both are closed with the
// exchange; -1 for oneself.
struct SharedPeer {
    int socket = -1;
    int process = -1;
};

// Where this rank's rows of a dispatch go, in order of slots: `quota_P[p]` rows to slot p, the first of them to row
// `first_P[p]` of the buffer of the slot's rank.
struct RowRoutes {
    std::span<const std::int64_t> quota_P;
    std::span<const std::int64_t> first_P;
    std::size_t slots_per_rank;
    std::size_t row_bytes;
};

class SharedExchange {
public:
    // How long a wait yields before it sleeps, and how long it sleeps before it looks at its peers.
    struct Waiting {
        std::chrono::microseconds yielding{50};
        std::chrono::microseconds slice{10'000};
    };

    // By rank; the segment of `rank` is its own.
    SharedExchange(int rank, std::vector<std::shared_ptr<SharedSegment>> segments, std::vector<SharedPeer> peers,
                   Waiting waiting);
    ~SharedExchange();
    SharedExchange(const SharedExchange&) = delete;
    SharedExchange& operator=(const SharedExchange&) = delete;

    int rank() const { return rank_; }
    std::size_t ranks() const { return segments_.size(); }
    const SharedSegment& segment(std::size_t rank) const { return *segments_[rank]; }

    // Give bytes to all ranks, no more than `gather_bytes`; returns the operation's number. At most one earlier
    // operation may be uncollected.
    std::uint64_t give(std::uint32_t kind, std::span<const std::byte> mine);

    // Copy what all ranks gave, by rank, each as many bytes as this one; operations in their order.
    SharedReport collect(std::uint64_t operation, std::uint32_t kind, std::span<std::byte> everybody,
                         std::chrono::nanoseconds patience);

    // Write rows `rows[i]` of x to where they go, i in order of slots. The counts of the dispatch have been collected.
    void send_rows(std::uint64_t dispatch, const std::byte* x, std::span<const std::int64_t> rows, const RowRoutes& routes);

    // Wait until the rows of every rank that sends any are there. `rows_G`: how many come from each.
    SharedReport await_rows(std::uint64_t dispatch, std::span<const std::int64_t> rows_G, std::chrono::nanoseconds patience);

    // Let the others read the outputs of the rows of a dispatch; copied, unless they are there already.
    void give_outputs(std::uint64_t dispatch, std::span<const std::byte> y);

    // Wait until the outputs of this rank's rows are there.
    SharedReport await_outputs(std::uint64_t dispatch, const RowRoutes& routes, std::chrono::nanoseconds patience);

    // Sum each token's outputs, float32, weighted [tokens, K], in order of k. order[i] is the (token, k) pair of the
    // i-th row in order of slots.
    void sum_outputs(std::uint64_t dispatch, const RowRoutes& routes, std::span<const std::int64_t> order,
                     RowsView weights, MutableRowsView out, InstructionSet set) const;

    // Copy the outputs, in order of slots.
    void copy_outputs(std::uint64_t dispatch, const RowRoutes& routes, std::byte* out) const;

    // Give each rank its part of x, `part` bytes, and wait for all parts; returns where they are, by rank, one after
    // the other, until the next call.
    SharedReport all_to_all(const std::byte* x, std::size_t part, std::chrono::nanoseconds patience);
    const std::byte* parts() const { return own().parts(exchanged_ - 1); }

    // Make a wait of another thread end, and the others see that this rank is gone. Does nothing in a forked child.
    void leave();

    // How often a wait slept.
    std::uint64_t sleeps() const { return sleeps_; }

private:
    struct Awaited {
        const SharedFlag* flag;
        std::uint64_t value;
        int peer;

        bool came() const { return flag->value.load(std::memory_order_acquire) >= value; }
    };

    SharedSegment& own() const { return *segments_[static_cast<std::size_t>(rank_)]; }
    SharedReport await_parts(std::size_t part, std::chrono::nanoseconds patience);
    SharedReport await(std::chrono::nanoseconds patience);
    SharedEnd await_one(const Awaited& one, std::chrono::steady_clock::time_point deadline);
    SharedEnd sleep_for(const Awaited& one, std::chrono::steady_clock::time_point deadline);
    SharedReport blame(SharedEnd end) const;
    bool is_gone(int peer) const;
    bool shares_core_with(int peer) const;
    void set(SharedFlag& flag, std::uint64_t value);
    void wake(const SharedSegment& sleeper);
    void wake_all();
    const std::byte* output_of(std::uint64_t dispatch, const RowRoutes& routes, std::size_t slot) const;

    pid_t process_;
    int rank_;
    std::vector<std::shared_ptr<SharedSegment>> segments_;
    std::vector<SharedPeer> peers_;
    Waiting waiting_;
    std::vector<Awaited> awaited_;  // of the wait under way
    std::uint64_t given_ = 0;
    std::uint64_t collected_ = 0;
    std::uint64_t exchanged_ = 0;
    std::uint64_t sleeps_ = 0;
    using Moment = std::chrono::steady_clock::time_point;
    Moment crowded_until_{};  // others compute on the cores: no use in yielding
    bool could_part_;         // there is a core for each rank
    Moment next_parting_{};
    std::atomic<bool> left_{false};
};

}  // namespace fourlane
