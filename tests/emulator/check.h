// Checked mode (check.cc): vector clocks and a shadow of shared memory. All functions return at once when it is off.
//
// A clock has an entry for each thread of the gang, one for the asynchronous proxy (which bulk copies a thread knows to
// have landed) and one that says whether griddep_wait() has been called or heard of. Barriers, mbarriers and __syncwarp
// join clocks; shuffles do not. Then come two entries a warp: how many of its wgmma groups and of its bulk stores have
// been waited for, so that what they read is free again only for those who know of the wait.
#pragma once

#include "internal.h"

namespace simt
{

extern bool has_instrumented; // set by instrument.cc

inline bool is_checking()
{
    return config.check && has_instrumented;
}

void check_start(Gang &g);
void check_end(Gang &g);
void check_join(Clock &into, const Clock &from);
void check_release(Fiber *f, Clock &into); // what f did until now is seen by who acquires `into`
void check_acquire(Fiber *f, const Clock &from);
void check_mbar_init(Mbar &m);
void check_mbar_use(const Mbar &m, Loc w);
void check_proxy_fence(Fiber *f);
void check_griddep_wait(Fiber *f);

enum Access { READ, WRITE, ATOMIC };
// An access of the running thread by the generic proxy. pc: of an instrumented access; null: w names the line.
void check_access(const void *p, size_t n, Access access, Loc w, const void *pc);
// A bulk copy fills shared memory; clock: what a waiter for it will know.
void check_async_write(const void *p, size_t n, const AsyncOp &op, Clock &clock);
// A chunk of a wgmma operand, read from now until warps wait for group number `wgmma_groups` of f.
void check_wgmma_operand(Fiber *f, const void *p, size_t n, Loc w);
void check_wgmma_wait(Fiber *f, uint32_t done_groups);
// The source of a bulk store, read from now until its issuer waits; the number stands for it there.
uint32_t check_store_source(Fiber *f, const void *p, size_t n, Loc w);
void check_store_wait(Fiber *f, uint32_t number);
// The target of a cp.async belongs to nobody from issue until its issuer has waited, or an mbarrier for it; then it was
// written at the issuer's time of issue, which check_copy_issue returns.
uint32_t check_copy_issue(void *p, Loc w);
void check_copy_landed(Fiber *f, const CpAsync &copy);
// Device memory touched by something that is not instrumented: bounds (always), rules of programmatic launches
// (checked).
void check_global(const void *p, size_t n, Access access, const char *what, Loc w);
// Global: what the grid wrote becomes what the next programmatic one must wait for.
void check_grid_start(bool is_programmatic);
void check_grid_end(bool launched_before_wait);

} // namespace simt
