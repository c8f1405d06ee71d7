// How the ranks of a shared exchange wait for each other, wake each other, and notice that somebody is gone.
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <ctime>
#include <utility>

#include "fourlane/shared_exchange.hpp"

namespace fourlane {
namespace {

using Clock = std::chrono::steady_clock;

// A yield that takes longer was not to a rank that waits, too; for how long that is remembered.
constexpr auto kLongYield = std::chrono::microseconds(200);
constexpr auto kCrowded = std::chrono::milliseconds(20);

// How often a rank sleeps to get a core of its own; where none is idle it sleeps in vain.
constexpr auto kPartingInterval = std::chrono::microseconds(500);

static_assert(sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t), "a futex is 32 bits");

// Sleep until woken, unless the word is no longer `expected`; 0 or errno.
int futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t expected, std::chrono::nanoseconds longest) {
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(longest);
    const timespec limit{static_cast<time_t>(seconds.count()), static_cast<long>((longest - seconds).count())};
    return ::syscall(SYS_futex, &word, FUTEX_WAIT, expected, &limit, nullptr, 0) == 0 ? 0 : errno;
}

void futex_wake(std::atomic<std::uint32_t>& word) { ::syscall(SYS_futex, &word, FUTEX_WAKE, 1, nullptr, nullptr, 0); }

}  // namespace

// Wait for everything in `awaited_`.
SharedReport SharedExchange::await(std::chrono::nanoseconds patience) {
    const Clock::time_point deadline = Clock::now() + patience;
    for (const Awaited& one : awaited_) {
        const SharedEnd end = await_one(one, deadline);
        if (end != SharedEnd::done) return blame(end);
    }
    return {};
}

// Yielding is the quickest where only ranks of the group run: each runs as soon as it can go on. Where others compute
// on the cores, who yields waits for their time slice to end, while who sleeps and is woken goes before them. And two
// ranks that yield to each other on one core stay there beside an idle one, while who is woken is given the idle one.
SharedEnd SharedExchange::await_one(const Awaited& one, Clock::time_point deadline) {
    if (one.came()) return SharedEnd::done;
    Clock::time_point now = Clock::now();
    if (could_part_ && shares_core_with(one.peer) && now >= next_parting_) {
        next_parting_ = now + kPartingInterval;
        return sleep_for(one, deadline);
    }
    const Clock::time_point enough = now + waiting_.yielding;
    while (now < enough && now >= crowded_until_) {
        ::sched_yield();
        if (one.came()) return SharedEnd::done;
        const Clock::time_point before = std::exchange(now, Clock::now());
        if (now - before > kLongYield) crowded_until_ = now + kCrowded;
    }
    return sleep_for(one, deadline);
}

SharedEnd SharedExchange::sleep_for(const Awaited& one, Clock::time_point deadline) {
    SharedBell& bell = own().bell();
    while (true) {
        const std::uint32_t rings = bell.rings.load(std::memory_order_acquire);
        if (left_.load(std::memory_order_acquire)) return SharedEnd::left;  // else `leave` rings after this
        // Either the peer sees that it is awaited, or its flag is seen here: both are in one order of all such steps.
        bell.awaited.store(static_cast<std::uint32_t>(one.peer) + 1, std::memory_order_seq_cst);
        int woken = EAGAIN;
        if (one.flag->value.load(std::memory_order_seq_cst) < one.value) {
            ++sleeps_;
            woken = futex_wait(bell.rings, rings, waiting_.slice);
        }
        bell.awaited.store(0, std::memory_order_relaxed);
        if (one.came()) return SharedEnd::done;
        if (woken == EINTR) return SharedEnd::interrupted;
        if (left_.load(std::memory_order_acquire)) return SharedEnd::left;
        if (is_gone(one.peer)) return one.came() ? SharedEnd::done : SharedEnd::gone;
        if (Clock::now() >= deadline) return SharedEnd::timed_out;
    }
}

// Name those who hold the wait up; if somebody is gone also all others who are, as who went first cannot be told.
SharedReport SharedExchange::blame(SharedEnd end) const {
    SharedReport report{end, {}};
    if (end == SharedEnd::interrupted || end == SharedEnd::left) return report;
    for (std::size_t peer = 0; end == SharedEnd::gone && peer < ranks(); ++peer) {
        if (is_gone(static_cast<int>(peer))) report.peers.push_back(static_cast<int>(peer));
    }
    for (const Awaited& one : awaited_) {
        if (end == SharedEnd::timed_out && !one.came()) report.peers.push_back(one.peer);
    }
    return report;
}

bool SharedExchange::is_gone(int peer) const {
    const SharedPeer& of = peers_[static_cast<std::size_t>(peer)];
    // Nobody sends anything on the socket, so whatever is to be read is its end.
    std::array<pollfd, 2> fds{pollfd{of.socket, POLLIN | POLLRDHUP, 0}, pollfd{of.process, POLLIN, 0}};
    return ::poll(fds.data(), fds.size(), 0) > 0;
}

// Say on which core this rank waits, and tell whether the peer waited there last.
bool SharedExchange::shares_core_with(int peer) const {
    const auto core = static_cast<std::uint32_t>(::sched_getcpu()) + 1;
    own().bell().core.store(core, std::memory_order_relaxed);
    return segments_[static_cast<std::size_t>(peer)]->bell().core.load(std::memory_order_relaxed) == core;
}

void SharedExchange::set(SharedFlag& flag, std::uint64_t value) { flag.value.store(value, std::memory_order_seq_cst); }

void SharedExchange::wake(const SharedSegment& sleeper) {
    SharedBell& bell = sleeper.bell();
    if (bell.awaited.load(std::memory_order_seq_cst) != static_cast<std::uint32_t>(rank_) + 1) return;
    bell.rings.fetch_add(1, std::memory_order_release);
    futex_wake(bell.rings);
}

void SharedExchange::wake_all() {
    for (std::size_t peer = 0; peer < ranks(); ++peer) {
        if (static_cast<int>(peer) != rank_) wake(*segments_[peer]);
    }
}

void SharedExchange::leave() {
    if (::getpid() != process_) return;  // a forked child shares the connections, which shall stay
    left_.store(true, std::memory_order_seq_cst);
    SharedBell& bell = own().bell();
    bell.rings.fetch_add(1, std::memory_order_release);
    futex_wake(bell.rings);
    for (const SharedPeer& peer : peers_) {
        if (peer.socket >= 0) ::shutdown(peer.socket, SHUT_RDWR);
    }
}

}  // namespace fourlane
