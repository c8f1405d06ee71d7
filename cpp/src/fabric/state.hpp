// What the simulator keeps for each port, queue, switch, flow and packet: hot fields first and together, so that an
// event touches few cache lines. Nothing here acts.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "fourlane/huge_pages.hpp"
#include "quantities.hpp"

namespace fourlane::fabric {

inline constexpr std::uint32_t kNone = ~0U;
inline constexpr std::uint32_t kMostQueues = 8;

// Ask for a cache line. The empty statement keeps compilers from taking a function of nothing else for idle (GCC does).
inline void fetch(const void* place) {
    __builtin_prefetch(place);
    asm volatile("");
}

enum class PacketKind : std::uint8_t { data, ack, nack, cnp, rts, cts };

// Which account a packet's buffer is charged to.
enum class Charge : std::uint8_t { none, ingress, egress };

struct alignas(64) Packet {
    Time time;  // in flight: when it arrives; queued: when it may leave
    Time sent;  // when its serialisation at its source began
    Time next_time;  // `time` of the packet behind it, so that that one need not be looked at
    std::uint32_t next;
    std::uint32_t flow;
    std::uint32_t seq;
    std::uint32_t hash;
    std::uint32_t destination;  // port of a host
    std::uint32_t wire;         // bytes
    std::uint32_t ingress;      // port it came in by, where it is queued
    PacketKind kind;
    Charge charge;
    std::uint8_t traffic_class;
    std::uint8_t queue;
    bool marked;
    bool trimmed;
};

static_assert(sizeof(Packet) == 64);

// Packets live in one array and are named by their place in it.
class PacketPool {
public:
    Packet& operator[](std::uint32_t id) { return packets_[id]; }

    std::uint32_t take() {
        if (free_ == kNone) return grow();
        const std::uint32_t id = free_;
        free_ = packets_[id].next;
        return id;
    }

    void give(std::uint32_t id) {
        packets_[id].next = free_;
        free_ = id;
    }

private:
    std::uint32_t grow() {
        packets_.emplace_back();
        return static_cast<std::uint32_t>(packets_.size() - 1);
    }

    std::uint32_t free_ = kNone;
    HugeVector<Packet> packets_;
};

// A directed link and the state of its scheduler.
struct alignas(64) Port {
    Time wake = kNever;  // time of the only valid TX event
    Time free_at;
    std::int64_t pace_q16 = 0;
    Time propagation;
    std::uint32_t flight_head = kNone;  // packets on the link, by arrival; only the first has an event
    std::uint32_t flight_tail = kNone;
    std::uint32_t peer = 0;
    std::uint32_t node = 0;
    std::uint32_t to_node = 0;
    std::uint8_t busy = 0;    // queues with something to send
    std::uint8_t paused = 0;  // queues
    std::uint8_t storm = 0;   // queues given up by the watchdog
    std::uint8_t current = 0;  // queue whose turn it is
    bool fresh = true;
    bool up = true;
    bool at_host = false;
    bool to_host = false;
    bool to_cut_through = false;
};

struct alignas(64) Queue {
    Time ready;  // when the first packet may leave; 0 where there is none
    std::uint32_t head = kNone;
    std::uint32_t tail = kNone;
    std::uint32_t flow_head = kNone;  // flows that can send, at hosts
    std::uint32_t flow_tail = kNone;
    Bytes bytes;
    std::int64_t deficit = 0;
    Time credit;  // a capped queue may send from then
    std::int64_t sent_bytes = 0;
    std::int64_t sent_packets = 0;
};

// Counters of a port and queue that change rarely.
struct QueueCounters {
    std::int64_t drops = 0;
    std::int64_t marks = 0;
    std::int64_t trims = 0;
    std::int64_t pauses = 0;
    Time paused;
    Time paused_since;
};

// Bytes queued at a port: now, and at most so far.
struct Depth {
    std::int64_t now = 0;
    std::int64_t most = 0;
};

// What came in by a port for a lossless queue and is still there.
struct Ingress {
    Bytes used;
    Bytes headroom_used;
    Bytes headroom;
    bool xoff = false;
};

struct ColdPort {
    Time frame_free;  // when the last pause frame has left
    Time tx_latency, rx_latency, message_gap;
    std::uint64_t marks_drawn = 0;
    Time looked{-1};  // when adaptive routing last looked at its depth; -1: never
};

struct alignas(64) Node {
    Time latency;
    Bytes shared;
    Bytes shared_used;
    std::uint64_t counter = 0;  // of routing choices
    std::uint64_t spray_key = 0;
    std::uint32_t tier_seed = 0;
    std::uint32_t tier = 0;
    std::uint32_t route_row = 0;
    std::size_t flowlets = 0;  // place of its table
    bool cut_through = false;
};

// Where packets to a host's port go at its leaf, and how the others find that leaf.
struct Endpoint {
    std::uint32_t leaf = kNone;  // node
    std::uint32_t leaf_index = 0;
    std::uint32_t last_port = 0;  // of the leaf, towards the host
};

struct Flowlet {
    Time last{-1};
    std::uint32_t port = kNone;
};

// A flow as its sender and its receiver see it.
struct alignas(64) Flow {
    std::int64_t size = 0;
    Bytes outstanding;
    std::uint32_t next_seq = 0;
    std::uint32_t total = 0;
    std::uint32_t acknowledged = 0;  // packets; with go-back-N the first one that is not
    std::uint32_t next = kNone;      // in the ring of its queue
    std::uint32_t received = 0;      // packets accepted; with go-back-N also the one expected
    std::uint32_t highest = 0;       // greatest sequence number seen, plus one
    std::uint32_t reorder = 0;
    std::uint32_t source = 0;
    std::uint32_t destination = 0;
    std::uint32_t hash = 0;
    std::uint32_t back_hash = 0;
    std::uint8_t traffic_class = 0;
    std::uint8_t flags = 0;

    // open: started, and cleared to send where that is needed; repeating: has lost packets to send again
    enum Flag : std::uint8_t { open = 1, in_ring = 2, finished = 4, repeating = 8 };
};

// A set of sequence numbers.
class Bits {
public:
    void resize(std::uint32_t count) { words_.resize((count + 63) / 64); }
    bool has(std::uint32_t i) const { return (words_[i / 64] >> (i % 64) & 1) != 0; }
    void add(std::uint32_t i) { words_[i / 64] |= 1ULL << (i % 64); }
    void remove(std::uint32_t i) { words_[i / 64] &= ~(1ULL << (i % 64)); }

private:
    std::vector<std::uint64_t> words_;
};

// Which packets of a flow are where, as long as that is open: from its first packet until it is finished.
struct Selective {
    Bits accepted;  // by the receiver
    Bits acked;     // known to the sender
    Bits missing;   // in `lost`
    std::vector<std::uint32_t> lost;  // to be sent again, from `first_lost` on
    std::size_t first_lost = 0;
};

// The reaction point of DCQCN. Absent: at line rate, nothing has happened yet.
struct RateLimiter {
    double line = 0, rate = 0, target = 0, alpha = 0;
    Time alpha_time{-1}, last_decrease{-1};
    std::int64_t timer_count = 0, byte_count = 0, bytes = 0;

    bool limited() const { return rate < line; }
};

// What only flows need that can lose packets, acknowledge sparsely or are controlled. -1 is "never" and "none".
struct Detail {
    Time last_progress, pace_next;
    Time rto_at{-1}, pace_at{-1}, timer_at{-1}, last_cnp{-1};  // of the events that count
    std::uint32_t expected = 0;  // first packet not accepted in order
    std::uint32_t nacked = kNone;
    std::uint32_t unacknowledged = 0;  // accepted since the last ACK
    std::unique_ptr<Selective> selective;
    std::unique_ptr<RateLimiter> limiter;
};

// Who may send to a host in a class that is cleared to send.
struct Clearance {
    std::uint32_t granted = 0;
    std::vector<std::uint32_t> requests;  // flows, from `first_request` on
    std::size_t first_request = 0;
};

}  // namespace fourlane::fabric
