// CUDA threads as fibers: stacks, the switch, the order in which threads run.
//
// A thread runs until it must wait (park) or yields; then the next ready one does. With a seed the next one is drawn at
// random, and the same seed draws the same order for the same block whatever the number of OS threads. Asynchronous
// work is performed when nothing is ready (as late as possible) or, in random mode, now and then before that.
#include "check.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifndef __x86_64__
#error "the switch between fibers is written for x86-64"
#endif

__thread uint3 threadIdx, blockIdx, blockDim, gridDim;

// simt_switch(&saved, other): the callee-saved registers are the whole context.
extern "C" void simt_switch(void **save, void *load);
asm(R"(
.text
.p2align 4
.globl simt_switch
.type simt_switch,@function
simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp,(%rdi)
    movq %rsi,%rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size simt_switch,.-simt_switch
)");

namespace simt
{

thread_local Fiber *current = nullptr;
thread_local Gang *gang = nullptr;
static thread_local void *main_sp = nullptr;

char *map_guarded(size_t bytes)
{
    void *m = mmap(nullptr, bytes + 2 * PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char *p = static_cast<char *>(m) + PAGE_BYTES;

    if (m == MAP_FAILED || mprotect(p, bytes, PROT_READ | PROT_WRITE)) {
        perror("emulator: mmap");
        abort();
    }
    return p;
}

uint64_t random_bits()
{
    uint64_t x = gang->random;

    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return gang->random = x;
}

// ---------------------------------------------------------------- ready threads

void enqueue(Fiber *f)
{
    gang->ready[gang->tail++ & gang->mask] = f;
}

void wake(Fiber *f)
{
    f->why = nullptr;
    enqueue(f);
}

void wake_all(WaitList &list)
{
    for (Fiber *f = list.head; f;) {
        Fiber *next = f->link;
        wake(f);
        f = next;
    }
    list.head = list.tail = nullptr;
    gang->spins = 0;
}

static bool run_one_async()
{
    Gang &g = *gang;

    if (g.async.empty())
        return false;
    if (config.seed)
        std::swap(g.async.front(), g.async[random_bits() % g.async.size()]);
    const AsyncOp op = std::move(g.async.front());
    g.async.pop_front();
    run_async(op);
    g.spins = 0;
    return true;
}

// At random, but one warp at a time is seldom drawn, for a while: threads that are just a little late find few faults.
static void draw_next(Gang &g)
{
    constexpr int TRIES = 12;
    const Block &b = g.blocks[0];

    if (g.starved_for-- == 0) {
        g.starved_for = 32 + random_bits() % 1024;
        const Block &other = g.blocks[random_bits() % g.blocks.size()];
        g.starved = &other.warps[random_bits() % b.warps.size()];
    }
    for (int i = 0; i < TRIES; i++) {
        std::swap(g.ready[g.head & g.mask], g.ready[(g.head + random_bits() % (g.tail - g.head)) & g.mask]);
        if (g.ready[g.head & g.mask]->warp != g.starved)
            break;
    }
}

static Fiber *next_ready()
{
    Gang &g = *gang;

    if (config.async == ASYNC_RANDOM && !g.async.empty() && random_bits() % 16 == 0)
        run_one_async();
    while (g.head == g.tail)
        if (!run_one_async())
            fail_deadlock("deadlock");
    if (config.seed)
        draw_next(g);
    return g.ready[g.head++ & g.mask];
}

static void switch_to(Fiber *from, Fiber *to)
{
    current = to;
    threadIdx = to->tid;
    if (to->block != from->block)
        blockIdx = to->block->index;
    simt_switch(&from->sp, to->sp);
}

void park(const char *why, const void *object, Loc w)
{
    Fiber *f = current;

    f->why = why;
    f->object = object;
    f->where = w;
    Fiber *next = next_ready();
    if (next != f)
        switch_to(f, next);
}

void yield()
{
    constexpr uint64_t SPINS_MAX = 100000000;
    Fiber *f = current;
    uint64_t spins = ++gang->spins;

    if (spins % 64 == 0)
        run_one_async();
    if (spins % 4096 == 0) {
        sched_yield();
        if (failed_last_grid()) // another block has failed: what this one waits for may never come
            abandon_gang();
    }
    if (spins > SPINS_MAX)
        fail_deadlock("no progress: threads spin");
    enqueue(f);
    Fiber *next = next_ready();
    if (next != f)
        switch_to(f, next);
}

// ---------------------------------------------------------------- a thread's life

[[noreturn]] static void leave_gang()
{
    void *dead;

    simt_switch(&dead, main_sp);
    __builtin_unreachable();
}

void abandon_gang()
{
    gang->has_failed = true;
    set_failed(true);
    leave_gang();
}

static void check_block_end(const Block &b)
{
    const Loc end = {"(end of block)", 0};
    const unsigned char *slack = b.smem + b.smem_bytes;
    const size_t n_slack = (0 - reinterpret_cast<uintptr_t>(slack)) & (PAGE_BYTES - 1);

    if (gang->is_programmatic && config.pdl && !b.has_waited)
        fail(end,
             "a block of a programmatic launch ends without griddep_wait(): the kernel after it may start before the "
             "kernel before it has ended");
    if (config.poison)
        for (size_t i = 0; i < n_slack; i++)
            if (slack[i] != 0xff)
                fail(end, "write %zu bytes past the end of dynamic shared memory (%zu bytes)", i, b.smem_bytes);
}

[[noreturn]] static void exit_fiber()
{
    Fiber *f = current;
    Block &b = *f->block;

    check_collectives_at_exit(f);
    check_copies_at_exit(f);
    check_wgmma_at_exit(f);
    f->is_done = true;
    f->warp->live &= ~(1u << f->lane);
    b.live--;
    gang->live--;
    release_barriers_of(b);
    if (b.live == 0)
        check_block_end(b);
    if (gang->live == 0) {
        if (!gang->async.empty())
            fail(gang->async[0].where, "block exits with a copy into its shared memory still in flight");
        check_copies_landed();
        leave_gang();
    }
    cluster_thread_exited();
    switch_to(f, next_ready());
    __builtin_unreachable();
}

extern "C" void simt_fiber_entry()
{
    (*gang->body)();
    exit_fiber();
}

void prepare_fiber(Fiber *f, uint32_t number)
{
    if (!f->stack)
        f->stack = map_guarded(STACK_BYTES);
    // Staggered tops: equal page offsets would fall into the same cache sets.
    uintptr_t top = reinterpret_cast<uintptr_t>(f->stack) + STACK_BYTES - number % 61 * 192;
    void **s = reinterpret_cast<void **>(top & ~static_cast<uintptr_t>(63));

    *--s = nullptr; // so that the entry sees the alignment of a call
    *--s = reinterpret_cast<void *>(simt_fiber_entry);
    for (int i = 0; i < 6; i++)
        *--s = nullptr;
    f->sp = s;
}

void run_fibers()
{
    Fiber *f = next_ready();

    current = f;
    threadIdx = f->tid;
    blockIdx = f->block->index;
    simt_switch(&main_sp, f->sp);
    current = nullptr;
}

} // namespace simt
