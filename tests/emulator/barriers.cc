// Block barriers (bar.sync, bar.arrive), the cluster barrier, and where shared memory lies.
#include "check.h"

#include <chrono>

namespace simt
{

// ---------------------------------------------------------------- block barriers

static bool is_complete(const Block &block, const Barrier &b)
{
    return b.arrived >= (b.is_all ? static_cast<int>(block.live) : b.expected);
}

static void release(Barrier &b)
{
    for (Fiber *f = b.waiters.head; f; f = f->link) {
        check_acquire(f, b.clock);
        f->bar_result = b.sum;
    }
    wake_all(b.waiters);
    b.clock.assign(b.clock.size(), 0);
    b.arrived = b.expected = b.sum = 0;
    b.is_all = false;
}

static Barrier &enter(int id, int threads, Loc w)
{
    Block &block = *current->block;

    if (id < 0 || id > 15)
        fail(w, "barrier id %d is not in 0 .. 15", id);
    if (threads < 0 || threads % 32 || threads > static_cast<int>(block.n_threads))
        fail(w, "barrier %d: %d threads is not a multiple of 32, or more than the block's %u", id, threads,
             block.n_threads);
    Barrier &b = block.barrier[id];
    if (b.arrived && (b.is_all != (threads == 0) || b.expected != threads))
        fail(w, "barrier %d: %d threads here, but %d in the arrivals before", id, threads, b.expected);
    b.is_all = threads == 0;
    b.expected = threads;
    b.arrived++;
    gang->counters.barriers++;
    check_release(current, b.clock);
    return b;
}

void bar_sync(int id, int threads, Loc w)
{
    Barrier &b = enter(id, threads, w);

    if (!is_complete(*current->block, b)) {
        b.waiters.push(current);
        park("barrier", &b, w);
        return;
    }
    current->bar_result = b.sum;
    check_acquire(current, b.clock);
    release(b);
    if (config.seed)
        yield();
}

void bar_arrive(int id, int threads, Loc w)
{
    Barrier &b = enter(id, threads, w);

    if (is_complete(*current->block, b))
        release(b);
}

// The sum counts true predicates; "and" counts false ones.
int bar_reduce(BarReduce op, int predicate, Loc w)
{
    Barrier &b = current->block->barrier[0];

    b.sum += (op == BAR_AND ? predicate == 0 : predicate != 0) ? 1 : 0;
    bar_sync(0, 0, w);
    const int sum = current->bar_result;
    return op == BAR_COUNT ? sum : op == BAR_AND ? sum == 0 : sum != 0;
}

void release_barriers_of(Block &block)
{
    for (Barrier &b : block.barrier)
        if (b.is_all && b.arrived && is_complete(block, b))
            release(b);
}

// ---------------------------------------------------------------- cluster barrier

static void complete_cluster_phase()
{
    Gang &g = *gang;

    if (g.cluster.arrived < static_cast<int>(g.live))
        return;
    g.cluster.arrived = 0;
    g.cluster_phase++;
    wake_all(g.cluster.waiters);
}

void cluster_arrive(Loc w)
{
    Fiber *f = current;

    if (f->has_arrived_cluster)
        fail(w, "cluster barrier: second arrival without a wait in between");
    f->has_arrived_cluster = true;
    f->cluster_phase = gang->cluster_phase;
    gang->cluster.arrived++;
    check_release(f, gang->cluster.clock);
    complete_cluster_phase();
}

void cluster_wait(Loc w)
{
    Fiber *f = current;

    if (!f->has_arrived_cluster)
        fail(w, "cluster barrier: wait without an arrival");
    while (gang->cluster_phase == f->cluster_phase) {
        gang->cluster.waiters.push(f);
        park("cluster barrier", nullptr, w);
    }
    f->has_arrived_cluster = false;
    check_acquire(f, gang->cluster.clock);
}

void cluster_thread_exited()
{
    if (gang->blocks.size() > 1 && gang->cluster.arrived)
        complete_cluster_phase();
}

uint32_t cluster_rank()
{
    return current->block->rank;
}

void *cluster_map(const void *p, uint32_t cta, Loc w)
{
    const Block *b = block_of(p);

    if (!b)
        fail(w, "cluster address of something that is not in dynamic shared memory");
    if (cta >= gang->blocks.size())
        fail(w, "the cluster has no block %u", cta);
    return gang->blocks[cta].smem + (static_cast<const unsigned char *>(p) - b->smem);
}

// ---------------------------------------------------------------- addresses

constexpr uint32_t RESERVED_BYTES = 1024; // at the bottom of shared memory, as on Hopper

unsigned char *dyn_smem_base()
{
    return current->block->smem;
}

Block *block_of(const void *p)
{
    const unsigned char *at = static_cast<const unsigned char *>(p);

    for (Block &b : gang->blocks)
        if (at >= b.smem && at < b.smem + ((b.smem_bytes + 1023) & ~static_cast<size_t>(1023)))
            return &b;
    return nullptr;
}

// The block's rank in the top byte. Static variables get a number that only serves reports.
uint32_t smem_addr(const void *p)
{
    const Block *b = block_of(p);

    if (b)
        return b->rank << 24 |
               (static_cast<uint32_t>(static_cast<const unsigned char *>(p) - b->smem) + RESERVED_BYTES);
    return 0x800000u | (static_cast<uint32_t>(reinterpret_cast<uintptr_t>(p)) & 0x7fffffu);
}

unsigned char *smem_at(const Block &block, uint32_t address)
{
    return block.smem + address - RESERVED_BYTES;
}

void thread_fence()
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

uint64_t clock_ns()
{
    return static_cast<uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
            .count());
}

} // namespace simt
