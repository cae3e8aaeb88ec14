// Checked mode: races, uninitialised reads, bounds and missing fences of shared memory, by vector clocks.
//
// Every byte of shared memory has a cell: who wrote it last and when, and up to three readers since. An access is a
// race if the clock of the thread at hand has not reached what the cell says. Wgmma operands and sources of bulk stores
// are read "from now on until waited for": their reader is an entry of the clock of its own, that only the wait
// advances. Bulk copies write in the name of their mbarrier in the same way.
#include "check.h"
#include "check_global.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace simt
{

// Here and not in instrument.cc, so that a program of plain kernels links with a sanitizer's own functions of those
// names.
bool has_instrumented; // constant initialisation: set by constructors that may run before any other

bool is_checked_build()
{
    return has_instrumented;
}

namespace
{

// An epoch: clock << 13 | is_atomic << 12 | who; 0: never.
using Epoch = uint32_t;
constexpr uint32_t WHO = 0xfff, ATOMIC_BIT = 0x1000, CLOCK_SHIFT = 13, CLOCK_MAX = (1u << 19) - 1;
constexpr uint32_t IN_FLIGHT = WHO; // the target of a cp.async that has not been waited for

struct Cell {
    Epoch writer;
    Epoch reader[3];
};

struct State {
    std::vector<std::vector<Cell>> blocks;
    std::vector<Cell> statics;
    std::vector<std::vector<uint32_t>> fences; // of each thread: its clock at each proxy fence, ascending
    std::vector<uint32_t> stores;              // of each warp: bulk stores issued
    uint32_t n_threads, n_warps;
};
thread_local State state;

// Entries of a clock.
uint32_t waited_entry()
{
    return state.n_threads;
}
uint32_t warp_of(const Fiber *f)
{
    return f->block->rank * static_cast<uint32_t>(f->block->warps.size()) + f->index / 32;
}
uint32_t wgmma_entry(uint32_t warp)
{
    return state.n_threads + 1 + warp;
}
uint32_t store_entry(uint32_t warp)
{
    return state.n_threads + 1 + state.n_warps + warp;
}
uint32_t first_mbar_entry()
{
    return state.n_threads + 1 + 2 * state.n_warps;
}

uint32_t &entry(Clock &c, uint32_t i)
{
    if (i >= c.size())
        c.resize(i + 1);
    return c[i];
}

Epoch make_epoch(uint32_t clock, uint32_t who)
{
    if (clock > CLOCK_MAX || who >= IN_FLIGHT) {
        fprintf(stderr, "emulator: a block is too long or too large for checked mode\n");
        abort();
    }
    return clock << CLOCK_SHIFT | who;
}

Epoch epoch_of(const Fiber *f)
{
    return make_epoch(f->clock[f->id], f->id);
}

bool is_seen(const Clock &clock, Epoch e)
{
    const uint32_t who = e & WHO;

    return (e >> CLOCK_SHIFT) <= (who < clock.size() ? clock[who] : 0);
}

Fiber *fiber_of(uint32_t id)
{
    const uint32_t n = gang->blocks[0].n_threads;

    return gang->blocks[id / n].fibers[id % n];
}

std::string name_of(Epoch e)
{
    const uint32_t who = e & WHO;

    if (who == IN_FLIGHT)
        return "a cp.async that has not been waited for";
    if (who >= first_mbar_entry())
        return "a bulk copy";
    if (who >= store_entry(0))
        return format_text("a bulk store of warp %u that has not been waited for", who - store_entry(0));
    if (who >= wgmma_entry(0))
        return format_text("a wgmma of warp %u that has not been waited for", who - wgmma_entry(0));
    const Fiber *f = fiber_of(who);
    return format_text("thread (%u,%u,%u) warp %u", f->tid.x, f->tid.y, f->tid.z, f->index / 32);
}

// Where an access happened: a line, or an address to be looked up once something is wrong.
struct Site {
    Loc where;
    const void *pc;
    const void *p; // what was accessed
    bool is_static;

    [[noreturn]] void fail_here(const char *format, ...) const __attribute__((format(printf, 2, 3)))
    {
        char text[1024];
        va_list list;
        va_start(list, format);
        vsnprintf(text, sizeof text, format, list);
        va_end(list);
        if (pc)
            fail_at(source_line(pc), "%s", text);
        fail(where, "%s", text);
    }
    std::string place() const
    {
        return is_static
                   ? format_text("static shared memory (byte %td)", static_cast<const char *>(p) - static_shared().at)
                   : format_text("shared memory 0x%x", smem_addr(p));
    }
};

// threadIdx and its kin: thread locals that kernels read and the scheduler writes.
bool is_index(const void *p)
{
    for (const uint3 *v : {&threadIdx, &blockIdx, &blockDim, &gridDim})
        if (p >= v && p < v + 1)
            return true;
    return false;
}

Cell *cells_of(const void *p, size_t n, Site &site)
{
    const char *at = static_cast<const char *>(p);

    site.is_static = false;
    if (Block *b = block_of(p)) {
        const size_t offset = static_cast<size_t>(static_cast<const unsigned char *>(p) - b->smem);
        if (b->live == 0)
            site.fail_here("access to the shared memory of a block that has exited");
        if (offset + n > b->smem_bytes)
            site.fail_here("access of %zu bytes runs past the end of dynamic shared memory (offset %zu of %zu)", n,
                           offset, b->smem_bytes);
        return &state.blocks[b->rank][offset];
    }
    const StaticShared shared = static_shared();
    if (at >= shared.at && at < shared.at + shared.bytes && (shared.is_exact || !is_index(p))) {
        if (gang->blocks.size() > 1)
            site.fail_here("static __shared__ in a kernel of clusters: the emulation has one copy for all blocks");
        site.is_static = true;
        return &state.statics[static_cast<size_t>(at - shared.at)];
    }
    return nullptr;
}

void add_reader(Cell &c, const Clock &clock, Epoch e)
{
    for (Epoch &r : c.reader)
        if (!r || (r & WHO) == (e & WHO) || is_seen(clock, r)) {
            r = e;
            return;
        }
    c.reader[e % 3] = e; // full of strangers: one is forgotten
}

void check_writer(const Cell &c, const Fiber *f, const Site &site, const char *what)
{
    if (c.writer && (c.writer & WHO) != f->id && !is_seen(f->clock, c.writer))
        site.fail_here("race on %s: %s, written by %s without synchronisation", site.place().c_str(), what,
                       name_of(c.writer).c_str());
}

void check_readers(const Cell &c, const Fiber *f, const Site &site)
{
    for (Epoch r : c.reader)
        if (r && (r & WHO) != f->id && !is_seen(f->clock, r))
            site.fail_here("race on %s: write, still being read by %s", site.place().c_str(), name_of(r).c_str());
}

void access_shared(Cell *cells, size_t n, Access access, Fiber *f, Site &site)
{
    const Epoch e = epoch_of(f);

    for (size_t i = 0; i < n; i++, site.p = static_cast<const char *>(site.p) + 1) {
        Cell &c = cells[i];
        if (!c.writer && access != WRITE)
            site.fail_here("read of uninitialised %s", site.place().c_str());
        if (access != ATOMIC || !(c.writer & ATOMIC_BIT))
            check_writer(c, f, site, access == READ ? "read" : "write");
        if (access == READ) {
            add_reader(c, f->clock, e);
            continue;
        }
        check_readers(c, f, site);
        c = {access == ATOMIC ? e | ATOMIC_BIT : e, {0, 0, 0}};
    }
}

// A local variable: free for all but the accumulators of a wgmma in flight, and for writes its registers of A.
void check_local(const char *p, size_t n, bool is_write, const Fiber *f, const Site &site)
{
    for (const HeldRegisters &held : f->held_registers) {
        const char *at = reinterpret_cast<const char *>(held.at);
        if (is_write && p + n > at && p < at + sizeof held.value)
            site.fail_here("registers of A changed while the wgmma of line %d reads them", held.where.line);
    }
    for (const Wgmma &op : f->wgmmas) {
        const char *acc = reinterpret_cast<const char *>(op.acc);
        if (p + n > acc && p < acc + 2 * op.n)
            site.fail_here("accumulator touched while its wgmma of line %d is in flight", op.where.line);
    }
}

} // namespace

// ---------------------------------------------------------------- clocks

void check_start(Gang &g)
{
    if (!is_checking())
        return;
    state.n_threads = static_cast<uint32_t>(g.blocks.size()) * g.blocks[0].n_threads;
    state.n_warps = static_cast<uint32_t>(g.blocks.size() * g.blocks[0].warps.size());
    state.blocks.resize(std::max(state.blocks.size(), g.blocks.size()));
    state.fences.assign(state.n_threads, {});
    state.stores.assign(state.n_warps, 0);
    for (Block &b : g.blocks) {
        state.blocks[b.rank].assign(b.smem_bytes, Cell{0, {0, 0, 0}});
        for (Fiber *f : b.fibers) {
            f->clock.assign(first_mbar_entry(), 0);
            f->clock[f->id] = 1;
        }
    }
    state.statics.assign(static_shared().bytes, Cell{0, {0, 0, 0}});
}

void check_end(Gang &)
{
    if (is_checking())
        global_block_end();
}

void check_join(Clock &into, const Clock &from)
{
    const size_t n = from.size();

    if (into.size() < n)
        into.resize(n);
    uint32_t *a = into.data();
    const uint32_t *b = from.data();
    for (size_t i = 0; i < n; i++)
        a[i] = a[i] < b[i] ? b[i] : a[i];
}

void check_release(Fiber *f, Clock &into)
{
    if (!is_checking())
        return;
    check_join(into, f->clock);
    f->clock[f->id]++;
}

void check_acquire(Fiber *f, const Clock &from)
{
    if (is_checking())
        check_join(f->clock, from);
}

void check_mbar_init(Mbar &m)
{
    if (!is_checking())
        return;
    m.init_thread = current->id;
    m.init_clock = current->clock[current->id];
}

void check_mbar_use(const Mbar &m, Loc w)
{
    if (is_checking() && current->id != m.init_thread && current->clock[m.init_thread] < m.init_clock)
        fail(w, "mbarrier at shared 0x%x is used without synchronising with its initialisation", smem_addr(m.at));
}

void check_proxy_fence(Fiber *f)
{
    if (!is_checking())
        return;
    state.fences[f->id].push_back(f->clock[f->id]);
    f->fence_seen = f->clock;
    f->clock[f->id]++;
}

void check_griddep_wait(Fiber *f)
{
    if (is_checking())
        f->clock[waited_entry()] = 1;
}

// ---------------------------------------------------------------- accesses

void check_access(const void *p, size_t n, Access access, Loc w, const void *pc)
{
    Fiber *f = current;
    const char *at = static_cast<const char *>(p);
    Site site = {w, pc, p, false};

    if (!f || !is_checking())
        return;
    if (static_cast<size_t>(at - f->stack) < STACK_BYTES) {
        if (!f->wgmmas.empty() || !f->held_registers.empty())
            check_local(at, n, access != READ, f, site);
        return;
    }
    if (Cell *cells = cells_of(p, n, site)) {
        access_shared(cells, n, access, f, site);
        return;
    }
    const GlobalFault fault = global_access(p, n, access, f->clock[waited_entry()] != 0);
    if (fault.what)
        site.fail_here("%s of %zu bytes %s: %s", access == READ ? "read" : "write", n, fault.what,
                       describe_global(p).c_str());
}

void check_global(const void *p, size_t n, Access access, const char *what, Loc w)
{
    if (is_checking()) {
        const GlobalFault fault = global_access(p, n, access, current->clock[waited_entry()] != 0);
        if (fault.what)
            fail(w, "%s of %zu bytes %s: %s", what, n, fault.what, describe_global(p).c_str());
    } else if (global_check(p, n)) {
        fail(w, "%s of %zu bytes out of bounds: %s", what, n, describe_global(p).c_str());
    }
}

// ---------------------------------------------------------------- the asynchronous proxy

void check_async_write(const void *p, size_t n, const AsyncOp &op, Clock &clock)
{
    if (!is_checking())
        return;
    Mbar *m = find_mbar(op.bar);
    Site site = {op.where, nullptr, p, false};
    if (!m)
        fail(op.where, "a bulk copy completes on an mbarrier that was never initialised");
    const uint32_t who = first_mbar_entry() + static_cast<uint32_t>(m - gang->mbars.data());
    const Epoch e = make_epoch(++m->n_copies, who);
    if (Cell *cells = cells_of(p, n, site))
        for (size_t i = 0; i < n; i++) {
            Cell &c = cells[i];
            if (c.writer && (c.writer & WHO) != op.thread && !is_seen(op.clock, c.writer))
                fail(op.where, "bulk copy into %s races with a write by %s", site.place().c_str(),
                     name_of(c.writer).c_str());
            for (Epoch r : c.reader)
                if (r && (r & WHO) != op.thread && !is_seen(op.clock, r))
                    fail(op.where, "bulk copy into %s, still being read by %s", site.place().c_str(),
                         name_of(r).c_str());
            c = {e, {0, 0, 0}};
        }
    entry(clock, who) = m->n_copies;
}

// A generic write is fit for the asynchronous proxy if its writer has fenced after it and the reader knows of that, or
// if the reader has fenced after it knew of the write.
static bool is_fenced(const Fiber *f, Epoch written)
{
    const uint32_t who = written & WHO, clock = written >> CLOCK_SHIFT;
    const std::vector<uint32_t> &fences = state.fences[who];
    const auto fence = std::lower_bound(fences.begin(), fences.end(), clock);

    if (fence != fences.end() && (who == f->id || f->clock[who] > *fence))
        return true;
    return who < f->fence_seen.size() && f->fence_seen[who] >= clock;
}

static void async_read(Fiber *f, const void *p, size_t n, const char *what, Epoch reader, Loc w)
{
    Site site = {w, nullptr, p, false};
    Cell *cells = cells_of(p, n, site);

    if (!cells)
        return;
    for (size_t i = 0; i < n; i++) {
        Cell &c = cells[i];
        const uint32_t who = c.writer & WHO;
        if (!c.writer)
            fail(w, "%s reads uninitialised %s", what, site.place().c_str());
        if (who >= first_mbar_entry() && who != IN_FLIGHT) {
            if (!is_seen(f->clock, c.writer))
                fail(w, "%s reads %s, filled by a bulk copy whose mbarrier was not waited for", what,
                     site.place().c_str());
        } else {
            if (who != f->id && !is_seen(f->clock, c.writer))
                fail(w, "%s reads %s, written by %s without synchronisation", what, site.place().c_str(),
                     name_of(c.writer).c_str());
            if (!is_fenced(f, c.writer))
                fail(w, "%s reads %s, written by %s without fence_proxy_async() in between", what, site.place().c_str(),
                     name_of(c.writer).c_str());
        }
        add_reader(c, f->clock, reader);
    }
}

void check_wgmma_operand(Fiber *f, const void *p, size_t n, Loc w)
{
    if (is_checking())
        async_read(f, p, n, "wgmma", make_epoch(f->wgmma_groups + 1, wgmma_entry(warp_of(f))), w);
}

void check_wgmma_wait(Fiber *f, uint32_t done_groups)
{
    if (!is_checking())
        return;
    uint32_t &known = f->clock[wgmma_entry(warp_of(f))];
    known = std::max(known, done_groups);
}

uint32_t check_store_source(Fiber *f, const void *p, size_t n, Loc w)
{
    if (!is_checking())
        return 0;
    const uint32_t warp = warp_of(f), number = ++state.stores[warp];
    async_read(f, p, n, "bulk store", make_epoch(number, store_entry(warp)), w);
    return number;
}

void check_store_wait(Fiber *f, uint32_t number)
{
    if (!is_checking())
        return;
    uint32_t &known = f->clock[store_entry(warp_of(f))];
    known = std::max(known, number);
}

// ---------------------------------------------------------------- cp.async

uint32_t check_copy_issue(void *p, Loc w)
{
    if (!is_checking())
        return 0;
    Site site = {w, nullptr, p, false};
    Cell *cells = cells_of(p, 16, site);
    if (!cells)
        fail(w, "cp.async into something that is not shared memory");
    access_shared(cells, 16, WRITE, current, site);
    for (int i = 0; i < 16; i++)
        cells[i].writer = CLOCK_MAX << CLOCK_SHIFT | IN_FLIGHT;
    return current->clock[current->id];
}

void check_copy_landed(Fiber *f, const CpAsync &copy)
{
    if (!is_checking())
        return;
    Site site = {{nullptr, 0}, nullptr, copy.to, false};
    Cell *cells = cells_of(copy.to, 16, site);
    for (int i = 0; i < 16; i++)
        if ((cells[i].writer & WHO) == IN_FLIGHT)
            cells[i].writer = make_epoch(copy.issued, f->id);
}

} // namespace simt
