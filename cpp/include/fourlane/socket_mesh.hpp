// Messages between one process and its peers over connected stream sockets, both ways on all of them at once.
//
// Every process posts the same operations in the same order. An operation has at most one message to each peer and
// one from each; both ends know its size beforehand, and a message of no bytes is not sent. Header:
//
//     magic "FLEX", version (16 bits), kind (16), operation (32), payload bytes (64), all big-endian
//
// The receiver knows the header it must get; anything else ends the conversation. Not for finding peers or proving
// who they are: the sockets are handed over connected.
//
// One thread posts and waits. Another may end that: `interrupt` and `settle`, after which the sockets can be closed.
#pragma once

#include <poll.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <vector>

namespace fourlane {

inline constexpr std::uint16_t kMeshVersion = 1;
inline constexpr std::size_t kMeshHeaderBytes = 20;
using MeshHeader = std::array<std::byte, kMeshHeaderBytes>;

MeshHeader mesh_header(std::uint16_t kind, std::uint32_t operation, std::uint64_t payload_bytes);

// How a wait ended: all moved; nothing moved for as long as allowed; a signal came, wait again; a peer closed its
// end; a socket failed; a peer sent something else than it should; there is something else to do, then wait again; this
// process leaves.
enum class MeshEnd { done, timed_out, interrupted, closed, failed, unexpected, woken, left };

// What is known of a peer that held an operation up.
struct MeshSuspect {
    int peer;
    std::uint64_t received;  // bytes of the operation's message, header included
    std::uint64_t expected;
    std::uint64_t unsent;  // bytes queued to it that its socket has not taken
};

struct MeshReport {
    MeshEnd end = MeshEnd::done;
    int error = 0;  // errno where end is failed
    std::vector<MeshSuspect> suspects;
    // By peer, seconds from the wait's beginning until all that is awaited from it had come, or the wait ended; 0 where
    // nothing was left to come.
    std::vector<double> waited;
};

class SocketMesh {
public:
    // By peer, -1 in the place of this process. They are made non-blocking; whoever opened them closes them.
    explicit SocketMesh(std::vector<int> sockets);

    // Begin an operation and send what the sockets take at once; returns its number. What is pointed to must stay
    // until `wait` has returned done. `to` and `from` have a part for each peer; the own one is copied.
    // The next peer is served first, then the one after it: were all to begin with the same one, its link would carry
    // everything while those of others are idle.
    std::uint32_t post(std::uint16_t kind, std::span<const std::span<const std::byte>> to,
                       std::span<const std::span<std::byte>> from);

    // Move bytes until an operation (and so all before it) is through, or nothing has moved for `patience`; or, if a
    // descriptor is given, that one is readable.
    MeshReport wait(std::uint32_t operation, std::chrono::milliseconds patience, int wake = -1);

    // From another thread: end the wait under way, if there is one, and all later ones, with `left`; the peers see the
    // connections closed. The sockets stay open.
    void interrupt();
    // From another thread, after `interrupt`: return when no socket is touched any more.
    void settle();

    std::size_t peers() const { return links_.size(); }

    // How often `wait` went to sleep; what "few wake-ups" is measured by.
    std::uint64_t sleeps() const { return sleeps_; }

private:
    using Clock = std::chrono::steady_clock;

    template <typename Byte>
    struct Message {
        std::uint32_t operation;
        MeshHeader header;
        std::span<Byte> payload;
        std::size_t moved = 0;  // of header and payload together

        std::size_t left() const { return header.size() + payload.size() - moved; }
    };

    struct Link {
        int socket;
        int low_water = 1;
        MeshHeader arrived{};  // header of the message coming in
        std::deque<Message<const std::byte>> outgoing;
        std::deque<Message<std::byte>> incoming;
        Clock::time_point came{};  // when the last message that came was whole

        bool awaits(std::uint32_t operation) const;
        bool owes(std::uint32_t operation) const;
    };

    // What became of an attempt to move bytes on one socket.
    struct Moved {
        bool any = false;
        MeshEnd end = MeshEnd::done;
        int error = 0;
    };

    static Moved send(Link& link);
    static Moved receive(Link& link, std::uint32_t operation);
    static void set_low_water(Link& link);
    MeshReport move(std::uint32_t operation, std::chrono::milliseconds patience, int wake);
    void watch(std::uint32_t operation);
    bool through(std::uint32_t operation) const;
    MeshReport report(MeshEnd end, int error, std::uint32_t operation, int culprit) const;
    MeshReport hung_up(std::uint32_t operation, int culprit, MeshEnd end, int error) const;

    std::vector<Link> links_;
    std::vector<std::size_t> order_;  // in which peers are served: from the one behind this process on
    std::uint32_t next_ = 0;
    std::uint64_t sleeps_ = 0;
    std::vector<pollfd> polled_;
    std::mutex at_work_;  // held while sockets are touched
    std::atomic<bool> leaving_ = false;
};

}  // namespace fourlane
