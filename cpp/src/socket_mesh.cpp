#include "fourlane/socket_mesh.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>

namespace fourlane {
namespace {

// Below this, waking for the first bytes costs no more than saying how many to wait for.
constexpr std::size_t kSmallMessage = 2048;
// Wake at the latest when so much has come. Kept below the 64 KB that a connection's first receive window holds, so
// that a reader is woken before the window is full; from 16 to 48 KB made no difference that could be measured.
constexpr std::size_t kMostAtOnce = 32 * 1024;

void put_big_endian(std::byte* to, std::uint64_t value, std::size_t bytes) {
    for (std::size_t i = 0; i < bytes; ++i) to[i] = static_cast<std::byte>(value >> (8 * (bytes - 1 - i)) & 0xff);
}

// The rest of header and payload after `moved` bytes, as at most two parts.
int parts_left(void* header, void* payload, std::size_t payload_bytes, std::size_t moved, iovec (&parts)[2]) {
    int count = 0;
    if (moved < kMeshHeaderBytes) parts[count++] = {static_cast<char*>(header) + moved, kMeshHeaderBytes - moved};
    const std::size_t done = moved - std::min(moved, kMeshHeaderBytes);
    if (done < payload_bytes) parts[count++] = {static_cast<char*>(payload) + done, payload_bytes - done};
    return count;
}

bool would_block(int error) { return error == EAGAIN || error == EWOULDBLOCK; }

}  // namespace

MeshHeader mesh_header(std::uint16_t kind, std::uint32_t operation, std::uint64_t payload_bytes) {
    MeshHeader header{};
    std::memcpy(header.data(), "FLEX", 4);
    put_big_endian(header.data() + 4, kMeshVersion, 2);
    put_big_endian(header.data() + 6, kind, 2);
    put_big_endian(header.data() + 8, operation, 4);
    put_big_endian(header.data() + 12, payload_bytes, 8);
    return header;
}

bool SocketMesh::Link::awaits(std::uint32_t operation) const {
    return !incoming.empty() && incoming.front().operation <= operation;
}

bool SocketMesh::Link::owes(std::uint32_t operation) const {
    return !outgoing.empty() && outgoing.front().operation <= operation;
}

SocketMesh::SocketMesh(std::vector<int> sockets) : polled_(sockets.size() + 1) {
    for (const int socket : sockets) {
        if (socket >= 0) {
            const int flags = ::fcntl(socket, F_GETFL);
            if (flags < 0 || ::fcntl(socket, F_SETFL, flags | O_NONBLOCK) < 0) {
                throw std::invalid_argument("sockets: not an open descriptor");
            }
        }
        Link link;
        link.socket = socket;
        links_.push_back(std::move(link));
    }
    const std::size_t own = static_cast<std::size_t>(std::find(sockets.begin(), sockets.end(), -1) - sockets.begin());
    for (std::size_t step = 1; step <= links_.size(); ++step) order_.push_back((own + step) % links_.size());
}

void SocketMesh::interrupt() {
    leaving_.store(true);
    for (const Link& link : links_) {
        if (link.socket >= 0) ::shutdown(link.socket, SHUT_RDWR);  // wakes who waits for it; it may be shut already
    }
}

void SocketMesh::settle() { const std::lock_guard<std::mutex> alone(at_work_); }

std::uint32_t SocketMesh::post(std::uint16_t kind, std::span<const std::span<const std::byte>> to,
                               std::span<const std::span<std::byte>> from) {
    const std::lock_guard<std::mutex> busy(at_work_);
    const std::uint32_t operation = next_++;
    for (const std::size_t peer : order_) {
        Link& link = links_[peer];
        if (link.socket < 0) {
            if (to[peer].size() != from[peer].size()) throw std::invalid_argument("sizes: as much to oneself as from oneself");
            if (!to[peer].empty()) std::memcpy(from[peer].data(), to[peer].data(), to[peer].size());
            continue;
        }
        if (!from[peer].empty()) {
            link.incoming.push_back({operation, mesh_header(kind, operation, from[peer].size()), from[peer]});
        }
        if (!to[peer].empty()) {
            link.outgoing.push_back({operation, mesh_header(kind, operation, to[peer].size()), to[peer]});
            if (!leaving_.load()) send(link);  // what is wrong with the socket is found by `wait`
        }
    }
    return operation;
}

SocketMesh::Moved SocketMesh::send(Link& link) {
    Moved moved;
    while (!link.outgoing.empty()) {
        auto& message = link.outgoing.front();
        iovec parts[2];
        msghdr out{};
        out.msg_iov = parts;
        out.msg_iovlen = static_cast<decltype(out.msg_iovlen)>(
            parts_left(message.header.data(), const_cast<std::byte*>(message.payload.data()), message.payload.size(),
                       message.moved, parts));
        const ssize_t count = ::sendmsg(link.socket, &out, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (count < 0) {
            if (errno == EINTR) continue;
            if (!would_block(errno)) moved.end = MeshEnd::failed, moved.error = errno;
            return moved;
        }
        moved.any = true;
        message.moved += static_cast<std::size_t>(count);
        if (message.left() == 0) link.outgoing.pop_front();
    }
    return moved;
}

SocketMesh::Moved SocketMesh::receive(Link& link, std::uint32_t operation) {
    Moved moved;
    while (link.awaits(operation)) {
        auto& message = link.incoming.front();
        iovec parts[2];
        msghdr in{};
        in.msg_iov = parts;
        in.msg_iovlen = static_cast<decltype(in.msg_iovlen)>(parts_left(
            link.arrived.data(), message.payload.data(), message.payload.size(), message.moved, parts));
        const ssize_t count = ::recvmsg(link.socket, &in, MSG_DONTWAIT);
        if (count < 0) {
            if (errno == EINTR) continue;
            if (!would_block(errno)) moved.end = MeshEnd::failed, moved.error = errno;
            return moved;
        }
        if (count == 0) {
            moved.end = MeshEnd::closed;
            return moved;
        }
        moved.any = true;
        message.moved += static_cast<std::size_t>(count);
        if (message.moved >= kMeshHeaderBytes && link.arrived != message.header) {
            moved.end = MeshEnd::unexpected;
            return moved;
        }
        if (message.left() == 0) {
            link.incoming.pop_front();
            link.came = Clock::now();
        }
    }
    return moved;
}

void SocketMesh::set_low_water(Link& link) {
    const std::size_t left = link.incoming.front().left();
    const int wanted = left > kSmallMessage ? static_cast<int>(std::min(left, kMostAtOnce)) : 1;
    if (wanted == link.low_water) return;
    // Where a kernel refuses, it wakes more often: slower, not wrong.
    if (::setsockopt(link.socket, SOL_SOCKET, SO_RCVLOWAT, &wanted, sizeof wanted) == 0) link.low_water = wanted;
}

bool SocketMesh::through(std::uint32_t operation) const {
    return std::none_of(links_.begin(), links_.end(),
                        [operation](const Link& link) { return link.awaits(operation) || link.owes(operation); });
}

MeshReport SocketMesh::wait(std::uint32_t operation, std::chrono::milliseconds patience, int wake) {
    const std::lock_guard<std::mutex> busy(at_work_);
    const auto began = Clock::now();
    MeshReport found = move(operation, patience, wake);
    found.waited.reserve(links_.size());
    for (Link& link : links_) {
        if (link.awaits(operation)) link.came = Clock::now();  // as far as it has
        found.waited.push_back(std::max(0.0, std::chrono::duration<double>(link.came - began).count()));
    }
    return found;
}

MeshReport SocketMesh::move(std::uint32_t operation, std::chrono::milliseconds patience, int wake) {
    polled_.back() = {wake, POLLIN, 0};
    auto give_up_at = Clock::now() + patience;
    while (!through(operation)) {
        if (leaving_.load()) return report(MeshEnd::left, 0, operation, -1);
        watch(operation);
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(give_up_at - Clock::now()).count();
        if (left <= 0) return report(MeshEnd::timed_out, 0, operation, -1);
        ++sleeps_;
        const int ready = ::poll(polled_.data(), polled_.size(),
                                 static_cast<int>(std::min<std::int64_t>(left, std::numeric_limits<int>::max())));
        if (ready < 0 && errno == EINTR) return report(MeshEnd::interrupted, 0, operation, -1);
        if (ready < 0) return report(MeshEnd::failed, errno, operation, -1);
        const bool woken = polled_.back().revents != 0;
        for (const std::size_t peer : order_) {
            if (polled_[peer].fd < 0 || polled_[peer].revents == 0) continue;
            Link& link = links_[peer];
            // First in: what a peer had sent before it closed or broke is still worth having.
            for (const Moved& moved : {receive(link, operation), send(link)}) {
                if (moved.any) give_up_at = Clock::now() + patience;
                if (moved.end == MeshEnd::done) continue;
                if (leaving_.load()) return report(MeshEnd::left, 0, operation, -1);
                return hung_up(operation, static_cast<int>(peer), moved.end, moved.error);
            }
        }
        if (woken && !through(operation)) return {MeshEnd::woken, 0, {}, {}};
    }
    return {};
}

// Say what is waited for at each socket: what an operation awaits, and room for all that is queued.
void SocketMesh::watch(std::uint32_t operation) {
    for (std::size_t peer = 0; peer < links_.size(); ++peer) {
        Link& link = links_[peer];
        const bool in = link.awaits(operation);
        const bool out = !link.outgoing.empty();
        if (in) set_low_water(link);
        const int events = (in ? POLLIN : 0) | (out ? POLLOUT : 0);
        polled_[peer] = {events != 0 ? link.socket : -1, static_cast<short>(events), 0};
    }
}

// Name the peer a fault was found at, and all others whose end is closed too: who closed first cannot be told.
MeshReport SocketMesh::hung_up(std::uint32_t operation, int culprit, MeshEnd end, int error) const {
    MeshReport found = report(end, error, operation, culprit);
    if (end == MeshEnd::unexpected) return found;
    for (std::size_t peer = 0; peer < links_.size(); ++peer) {
        pollfd one{links_[peer].socket, POLLRDHUP, 0};
        if (static_cast<int>(peer) == culprit || one.fd < 0 || ::poll(&one, 1, 0) <= 0) continue;
        const MeshReport other = report(end, error, operation, static_cast<int>(peer));
        found.suspects.insert(found.suspects.end(), other.suspects.begin(), other.suspects.end());
    }
    return found;
}

// Describe the culprit, or, if it is -1, everybody the operation waits for.
MeshReport SocketMesh::report(MeshEnd end, int error, std::uint32_t operation, int culprit) const {
    MeshReport found{end, error, {}};
    for (std::size_t peer = 0; peer < links_.size(); ++peer) {
        const Link& link = links_[peer];
        const bool holds_up = link.awaits(operation) || link.owes(operation);
        if (culprit >= 0 ? static_cast<int>(peer) != culprit : !holds_up) continue;
        MeshSuspect suspect{static_cast<int>(peer), 0, 0, 0};
        if (link.awaits(operation)) {
            const auto& message = link.incoming.front();
            suspect.received = message.moved;
            suspect.expected = message.header.size() + message.payload.size();
        }
        for (const auto& message : link.outgoing) suspect.unsent += message.left();
        found.suspects.push_back(suspect);
    }
    return found;
}

}  // namespace fourlane
