// What a launch moved and multiplied, by the emulation's own accounting (simt::Counters), held to a formula.
//
// Copies (bulk_load, cp.async) and the operations of the tensor cores are counted in every build; plain reads and
// writes of device memory in the checked build only, thread by thread: what all lanes of a warp read alike counts 32
// times. So kernels that move rows by plain accesses are measured twice, at two widths: what a step's tables and counts
// cost drops out of the difference, which must be the formula's to the byte. Writes are nobody's overhead and always
// exact.
#pragma once

#include "kernels/support/expect.h"
#include "simt.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string>
#include <vector>

namespace hrk_test
{

struct Traffic {
    uint64_t bulk = 0, cp_async = 0; // bytes
    uint64_t wgmma = 0, mma = 0;     // FLOP of whole instructions
    uint64_t written = 0;            // bytes by plain writes and atomics
};

inline bool counts_plain_accesses()
{
    return simt::config.check && simt::is_checked_build();
}

// The one kernel that launch() runs.
template <class F> simt::LaunchRecord measure(F launch)
{
    simt::take_launches();
    assert_int_equal(launch(), cudaSuccess);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    const std::vector<simt::LaunchRecord> all = simt::take_launches();
    assert_int_equal(all.size(), 1);
    return all[0];
}

inline void expect_count(const simt::LaunchRecord &r, const char *what, uint64_t got, uint64_t want)
{
    if (got != want)
        fail_msg("%s, %u x %u blocks of %u threads: %" PRIu64 " %s; the formula says %" PRIu64, r.kernel.c_str(),
                 r.grid.x, r.grid.y * r.grid.z, r.block.x, got, what, want);
}

inline void expect_traffic(const simt::LaunchRecord &r, const Traffic &want)
{
    expect_count(r, "bytes by bulk_load", r.counters.bulk_load_bytes, want.bulk);
    expect_count(r, "bytes by cp.async", r.counters.cp_async_bytes, want.cp_async);
    expect_count(r, "FLOP by wgmma", r.counters.wgmma_flops, want.wgmma);
    expect_count(r, "FLOP by mma", r.counters.mma_flops, want.mma);
    expect_count(r, "bytes by bulk stores and prefetches", r.counters.bulk_store_bytes + r.counters.bulk_prefetch_bytes,
                 0);
    if (counts_plain_accesses())
        expect_count(r, "bytes written plainly", r.counters.global_write_bytes, want.written);
}

// Without the copies, which the checked build counts as reads too.
inline uint64_t plain_read_bytes(const simt::LaunchRecord &r)
{
    return r.counters.global_read_bytes - r.counters.bulk_load_bytes - r.counters.cp_async_bytes;
}

// By plain reads wide takes `more` bytes more than narrow; up to `tables` may come on top, for what more threads read
// of the step's tables.
inline void expect_more_read(const simt::LaunchRecord &narrow, const simt::LaunchRecord &wide, uint64_t more,
                             uint64_t tables = 0)
{
    if (!counts_plain_accesses())
        return;
    const uint64_t got = plain_read_bytes(wide) - plain_read_bytes(narrow);

    if (got < more || got > more + tables)
        fail_msg("%s: reads %" PRIu64 " bytes more at the larger size; the formula says %" PRIu64
                 " and at most %" PRIu64 " of tables",
                 wide.kernel.c_str(), got, more, tables);
}

// The numbers of the template argument list that begins after `opening` in a kernel's name; true and false are 1 and 0.
inline std::vector<uint32_t> shape_of(const simt::LaunchRecord &r, const char *opening = "Shape<")
{
    size_t at = r.kernel.rfind(opening);
    std::vector<uint32_t> numbers;

    if (at == std::string::npos)
        fail_msg("%s has no %s", r.kernel.c_str(), opening);
    for (at += strlen(opening); r.kernel[at] != '>'; at++) {
        const size_t end = r.kernel.find_first_of(",>", at);
        const std::string word = r.kernel.substr(at, end - at);

        numbers.push_back(word.find("true") != std::string::npos ? 1 : (uint32_t)strtoul(word.c_str(), nullptr, 10));
        at = end;
        if (r.kernel[at] == '>')
            break;
    }
    return numbers;
}

inline uint64_t ceil_div(uint64_t a, uint64_t b)
{
    return (a + b - 1) / b;
}

} // namespace hrk_test
