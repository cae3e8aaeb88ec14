// Checked mode, device memory: bounds, and the rules of programmatic launches.
//
// A kernel launched programmatically may run while its predecessor still does. Until it has called griddep_wait() it
// must not read what the predecessor writes, and must write nothing. The emulation runs grids one after the other, so
// the rule is checked, not acted out: the bytes that a grid wrote are remembered until the next one has ended. A grid
// that lets its successor start before it has itself waited passes on what it had to wait for.
#include "check_global.h"

#include <mutex>
#include <unordered_map>

namespace simt
{

namespace
{

// Bytes by 64-byte line: a bit a byte.
using ByteSet = std::unordered_map<uintptr_t, uint64_t>;

thread_local ByteSet written; // by the blocks of this OS thread, since the last one ended
std::mutex mutex;
ByteSet written_by_grid; // under the mutex
ByteSet written_before;  // by the predecessors; constant while a grid runs

template <class F> void for_lines(const void *p, size_t n, F f)
{
    uintptr_t at = reinterpret_cast<uintptr_t>(p), end = at + n;

    while (at < end) {
        const uintptr_t line = at >> 6, stop = std::min(end, (line + 1) << 6);
        const uint64_t bits = stop - at == 64 ? ~0ull : ((1ull << (stop - at)) - 1) << (at & 63);
        f(line, bits);
        at = stop;
    }
}

void merge(ByteSet &into, const ByteSet &from)
{
    for (const auto &line : from)
        into[line.first] |= line.second;
}

bool was_written_before(const void *p, size_t n)
{
    bool found = false;

    for_lines(p, n, [&](uintptr_t line, uint64_t bits) {
        const auto it = written_before.find(line);
        found |= it != written_before.end() && (it->second & bits);
    });
    return found;
}

} // namespace

GlobalFault global_access(const void *p, size_t n, Access access, bool has_waited)
{
    if (global_check(p, n))
        return {"out of bounds"};
    if (!is_device_address(p))
        return {nullptr};
    (access == READ ? gang->counters.global_read_bytes : gang->counters.global_write_bytes) += n;
    if (!config.pdl)
        return {nullptr};
    if (gang->is_programmatic && !has_waited) {
        if (access != READ)
            return {"before griddep_wait() in a programmatic launch"};
        if (was_written_before(p, n))
            return {"that the kernel before wrote, without griddep_wait()"};
    }
    if (access != READ)
        for_lines(p, n, [](uintptr_t line, uint64_t bits) { written[line] |= bits; });
    return {nullptr};
}

void global_block_end()
{
    std::lock_guard<std::mutex> lock(mutex);

    merge(written_by_grid, written);
    written.clear();
}

void check_grid_start(bool is_programmatic)
{
    std::lock_guard<std::mutex> lock(mutex);

    written_by_grid.clear();
    if (!is_programmatic)
        written_before.clear();
}

void check_grid_end(bool launched_before_wait)
{
    std::lock_guard<std::mutex> lock(mutex);

    if (launched_before_wait)
        merge(written_before, written_by_grid);
    else
        written_before.swap(written_by_grid);
    written_by_grid.clear();
}

} // namespace simt
