// Device and pinned memory of the runtime stand-in.
//
// Each kind has one reserved range of addresses that is handed out once: an allocation ends at a guard page (to 256
// bytes), and what is freed stays inaccessible, so a stale pointer faults instead of finding somebody else's data.
// Fresh memory is NaN in every float format; for large blocks that costs nothing until it is written, as a small file
// of 0xff is mapped over and over, copy on write.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <shared_mutex>

#include "runtime_internal.h"
#include "simt.h"

namespace emu
{

namespace
{

constexpr size_t PAGE = 4096, GRAIN = 256, POISON_FILE = 16 << 20;
constexpr size_t RANGE = size_t(1) << 39; // of addresses, never all used

struct Block {
    size_t size, page_bytes;
    char *pages;
    bool is_freed;
};
struct Range {
    char *low = nullptr, *next = nullptr;
    std::map<uintptr_t, Block> blocks;
    size_t live_bytes = 0, n_live = 0;

    bool holds(const void *p) const
    {
        return low && p >= low && p < low + RANGE;
    }
};
// Kernels ask from several threads while the API's lock is held by whoever runs them, hence a lock of its own.
std::shared_mutex memory_lock;
Range device_range, pinned_range;
std::map<uintptr_t, size_t> registered; // host memory made pinned afterwards
std::atomic<uint64_t> generation{1};    // changes with every allocation and release

size_t rounded(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

void die(const char *what)
{
    perror(what);
    abort();
}

int poison_file()
{
    static int file = [] {
        int fd = memfd_create("poison", MFD_CLOEXEC);
        std::vector<char> ones(POISON_FILE, char(0xff));

        if (fd < 0 || write(fd, ones.data(), ones.size()) != ssize_t(ones.size()))
            die("memfd_create");
        return fd;
    }();
    return file;
}

bool map_poisoned(char *pages, size_t bytes)
{
    if (bytes < POISON_FILE / 16) {
        if (mprotect(pages, bytes, PROT_READ | PROT_WRITE))
            return false;
        memset(pages, 0xff, bytes);
        return true;
    }
    for (size_t at = 0; at < bytes; at += POISON_FILE)
        if (mmap(pages + at, std::min(bytes - at, POISON_FILE), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, poison_file(), 0) == MAP_FAILED)
            return false;
    return true;
}

void *allocate(Range &range, size_t n)
{
    size_t room = rounded(n, GRAIN), bytes = rounded(room, PAGE);

    if (!range.low) {
        void *low = mmap(nullptr, RANGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (low == MAP_FAILED)
            die("reserving addresses");
        range.low = range.next = static_cast<char *>(low);
    }
    if (bytes > RANGE || range.next + bytes + PAGE > range.low + RANGE || !map_poisoned(range.next, bytes))
        return nullptr;
    char *p = range.next + bytes - room;
    range.blocks[uintptr_t(p)] = {n, bytes, range.next, false};
    range.next += bytes + PAGE;
    range.live_bytes += rounded(n, 512);
    range.n_live++;
    generation++;
    return p;
}

void release(Range &range, Block &block)
{
    block.is_freed = true;
    range.live_bytes -= rounded(block.size, 512);
    range.n_live--;
    generation++;
    if (mmap(block.pages, block.page_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
             0) == MAP_FAILED)
        die("releasing memory");
}

bool release(Range &range, void *p)
{
    auto found = range.blocks.find(uintptr_t(p));

    if (found == range.blocks.end() || found->second.is_freed)
        return false;
    release(range, found->second);
    return true;
}

// The block that begins at or before p, NULL if there is none.
const std::pair<const uintptr_t, Block> *block_before(const Range &range, const void *p)
{
    auto after = range.blocks.upper_bound(uintptr_t(p));
    return after == range.blocks.begin() ? nullptr : &*std::prev(after);
}

bool is_inside(const Range &range, const void *p, size_t n)
{
    const auto *found = block_before(range, p);

    return found && !found->second.is_freed && n <= found->second.size &&
           uintptr_t(p) - found->first <= found->second.size - n;
}

size_t free_device_bytes()
{
    return device.memory_bytes - std::min(device.memory_bytes, device_range.live_bytes);
}

} // namespace

MemoryKind memory_kind(const void *p, size_t n)
{
    std::shared_lock<std::shared_mutex> guard(memory_lock);

    if (device_range.holds(p))
        return is_inside(device_range, p, n) ? DEVICE : INVALID;
    if (pinned_range.holds(p))
        return is_inside(pinned_range, p, n) ? PINNED : INVALID;
    auto after = registered.upper_bound(uintptr_t(p));
    if (after != registered.begin()) {
        auto found = std::prev(after);
        if (n <= found->second && uintptr_t(p) - found->first <= found->second - n)
            return PINNED;
    }
    return PAGEABLE;
}

void reset_memory()
{
    std::unique_lock<std::shared_mutex> guard(memory_lock);

    for (Range *range : {&device_range, &pinned_range})
        for (auto &block : range->blocks)
            if (!block.second.is_freed)
                release(*range, block.second);
    registered.clear();
}

} // namespace emu

using namespace emu;

namespace simt
{

std::string describe_global(const void *p)
{
    std::shared_lock<std::shared_mutex> guard(memory_lock);
    const auto *found = block_before(device_range, p);
    char text[200];

    if (!device_range.holds(p) || !found)
        return "not device memory";
    size_t offset = uintptr_t(p) - found->first, size = found->second.size;
    const char *state = found->second.is_freed ? "freed" : "live";
    if (offset < size)
        snprintf(text, sizeof text, "offset %zu of a %s allocation of %zu bytes", offset, state, size);
    else
        snprintf(text, sizeof text, "%zu bytes past the end of a %s allocation of %zu bytes", offset - size, state,
                 size);
    return text;
}

int global_check(const void *p, size_t n)
{
    static thread_local uint64_t seen;
    static thread_local const char *low, *high;
    const char *at = static_cast<const char *>(p);

    if (!device_range.holds(p))
        return 0;
    if (seen == generation.load(std::memory_order_relaxed) && at >= low && at < high && n <= size_t(high - at))
        return 0;
    std::shared_lock<std::shared_mutex> guard(memory_lock);
    if (!is_inside(device_range, p, n))
        return 1;
    const auto *found = block_before(device_range, p);
    low = reinterpret_cast<const char *>(found->first);
    high = low + found->second.size;
    seen = generation;
    return 0;
}

bool is_device_address(const void *p)
{
    return device_range.holds(p);
}

} // namespace simt

extern "C" {

size_t emu_n_allocations(void)
{
    std::shared_lock<std::shared_mutex> guard(memory_lock);
    return device_range.n_live + pinned_range.n_live + registered.size();
}

size_t emu_device_bytes(void)
{
    std::shared_lock<std::shared_mutex> guard(memory_lock);
    return device_range.live_bytes;
}

cudaError_t cudaMalloc(void **p, size_t n)
{
    EMU_CALL(ALLOCATE);
    std::unique_lock<std::shared_mutex> memory(memory_lock);

    *p = nullptr;
    if (n > free_device_bytes())
        return fail(cudaErrorMemoryAllocation);
    if (n)
        *p = allocate(device_range, n);
    return *p || !n ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void *p)
{
    EMU_CALL(ALLOCATE);
    if (!p)
        return cudaSuccess;
    run_all();
    std::unique_lock<std::shared_mutex> memory(memory_lock);
    return release(device_range, p) ? after_wait() : fail(cudaErrorInvalidValue);
}

static cudaError_t allocate_pinned(void **p, size_t n)
{
    std::unique_lock<std::shared_mutex> memory(memory_lock);

    *p = n ? allocate(pinned_range, n) : nullptr;
    return *p || !n ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}

cudaError_t cudaMallocHost(void **p, size_t n)
{
    EMU_CALL(ALLOCATE);
    return allocate_pinned(p, n);
}

cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags)
{
    EMU_CALL(ALLOCATE);
    return flags & ~unsigned(cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined)
               ? fail(cudaErrorInvalidValue)
               : allocate_pinned(p, n);
}

cudaError_t cudaFreeHost(void *p)
{
    EMU_CALL(ALLOCATE);
    if (!p)
        return cudaSuccess;
    run_all();
    std::unique_lock<std::shared_mutex> memory(memory_lock);
    return release(pinned_range, p) ? after_wait() : fail(cudaErrorInvalidValue);
}

cudaError_t cudaHostRegister(void *p, size_t n, unsigned)
{
    EMU_CALL(ALLOCATE);
    if (!p || !n || memory_kind(p, n) != PAGEABLE)
        return fail(p && n ? cudaErrorHostMemoryAlreadyRegistered : cudaErrorInvalidValue);
    std::unique_lock<std::shared_mutex> memory(memory_lock);
    registered[uintptr_t(p)] = n;
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *p)
{
    EMU_CALL(ALLOCATE);
    run_all();
    std::unique_lock<std::shared_mutex> memory(memory_lock);
    return registered.erase(uintptr_t(p)) ? after_wait() : fail(cudaErrorHostMemoryNotRegistered);
}

cudaError_t cudaHostGetDevicePointer(void **on_device, void *p, unsigned)
{
    EMU_CALL(PLAIN);
    *on_device = p;
    return memory_kind(p, 1) == PINNED ? cudaSuccess : fail(cudaErrorInvalidValue);
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    EMU_CALL(PLAIN);
    std::shared_lock<std::shared_mutex> memory(memory_lock);

    *free_bytes = free_device_bytes();
    *total = device.memory_bytes;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *p)
{
    EMU_CALL(PLAIN);
    MemoryKind kind = memory_kind(p, 1);

    memset(attributes, 0, sizeof *attributes);
    attributes->type = kind == DEVICE   ? cudaMemoryTypeDevice
                       : kind == PINNED ? cudaMemoryTypeHost
                                        : cudaMemoryTypeUnregistered;
    attributes->devicePointer = kind == DEVICE || kind == PINNED ? const_cast<void *>(p) : nullptr;
    attributes->hostPointer = kind == DEVICE ? nullptr : const_cast<void *>(p);
    return cudaSuccess;
}

} // extern "C"
