#include "fourlane/shared_segment.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>

namespace fourlane {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::uint64_t kMost = std::uint64_t{1} << 40;  // more in a buffer would not fit in a process's addresses

// What a segment begins with.
struct Head {
    char magic[8];
    std::uint32_t version;
    SegmentShape shape;
};

constexpr char kMagic[8] = {'4', 'l', 'a', 'n', 'e', 's', 'h', 'm'};

[[noreturn]] void fail(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

std::size_t whole_pages(std::size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

std::size_t flag_bytes(const SegmentShape& shape) {
    const std::size_t flags = 1 + kBuffers + (kBuffers + 1) * std::size_t{shape.ranks};
    return whole_pages(sizeof(SharedBell) + flags * sizeof(SharedFlag));
}

std::size_t slot_bytes(const SegmentShape& shape) { return whole_pages(sizeof(GatherHeader) + shape.gather_bytes); }

std::size_t segment_bytes(const SegmentShape& shape) {
    return kPage + flag_bytes(shape) + kGatherSlots * slot_bytes(shape) + 3 * kBuffers * whole_pages(shape.buffer_bytes);
}

void check(const SegmentShape& shape) {
    if (shape.ranks == 0 || shape.gather_bytes > kMost || shape.buffer_bytes > kMost) {
        throw std::runtime_error("a shared segment of an impossible shape");
    }
}

}  // namespace

std::shared_ptr<SharedSegment> SharedSegment::make(const SegmentShape& shape) {
    check(shape);
    const int descriptor = ::memfd_create("fourlane-exchange", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (descriptor < 0) fail("memfd_create");
    const auto size = static_cast<off_t>(segment_bytes(shape));
    constexpr int kSeals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW;
    if (::ftruncate(descriptor, size) != 0 || ::fcntl(descriptor, F_ADD_SEALS, kSeals) != 0) {
        const int error = errno;
        ::close(descriptor);
        errno = error;
        fail("sizing a memfd");
    }
    Head head{};
    std::memcpy(head.magic, kMagic, sizeof(kMagic));
    head.version = kSegmentVersion;
    head.shape = shape;
    // Owned from here on. Flags need no first value: a new memfd is zero.
    std::shared_ptr<SharedSegment> made(new SharedSegment(descriptor, shape));
    std::memcpy(made->base_, &head, sizeof(head));
    return made;
}

std::shared_ptr<SharedSegment> SharedSegment::map(int descriptor, std::uint32_t ranks) {
    struct stat status {};
    if (::fstat(descriptor, &status) != 0) fail("fstat");
    Head head{};
    const int seals = ::fcntl(descriptor, F_GET_SEALS);
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || ::pread(descriptor, &head, sizeof(head), 0) != sizeof(head) ||
        std::memcmp(head.magic, kMagic, sizeof(kMagic)) != 0) {
        throw std::runtime_error("what was passed is no segment of an exchange");
    }
    if (head.version != kSegmentVersion) throw std::runtime_error("a segment of another version; run one version of fourlane");
    check(head.shape);
    if (head.shape.ranks != ranks || static_cast<std::uint64_t>(status.st_size) != segment_bytes(head.shape)) {
        throw std::runtime_error("a segment for a group of another size");
    }
    const int own = ::fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
    if (own < 0) fail("dup");
    std::shared_ptr<SharedSegment> mapped(new SharedSegment(own, head.shape));
    mapped->close_descriptor();
    return mapped;
}

SharedSegment::SharedSegment(int descriptor, const SegmentShape& shape)
    : owner_(::getpid()), descriptor_(descriptor), shape_(shape), size_(segment_bytes(shape)) {
    void* const address = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, descriptor, 0);
    if (address == MAP_FAILED) {
        const int error = errno;
        close_descriptor();
        errno = error;
        fail("mapping a segment");
    }
    base_ = static_cast<std::byte*>(address);
    // A child that a rank forks is no rank: it shall not be able to spoil what ranks exchange.
    ::madvise(address, size_, MADV_DONTFORK);
}

SharedSegment::~SharedSegment() {
    close_descriptor();
    if (::getpid() == owner_) ::munmap(base_, size_);  // a forked child has no map, perhaps something else there
}

void SharedSegment::close_descriptor() {
    if (descriptor_ >= 0) ::close(descriptor_);
    descriptor_ = -1;
}

std::byte* SharedSegment::gather_slot(std::uint64_t operation) const {
    return base_ + kPage + flag_bytes(shape_) + (operation % kGatherSlots) * slot_bytes(shape_);
}

std::byte* SharedSegment::buffer(std::size_t index) const {
    return base_ + kPage + flag_bytes(shape_) + kGatherSlots * slot_bytes(shape_) + index * whole_pages(shape_.buffer_bytes);
}

}  // namespace fourlane
