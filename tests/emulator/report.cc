// Reports: what went wrong, where, in which thread; the picture of a deadlock; faults inside kernels.
//
// The first failure abandons its gang (its fibers are never resumed) and fails the launch; the process goes on.
#include "internal.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <atomic>
#include <map>
#include <mutex>

namespace simt
{

static std::mutex report_mutex;
static std::string first_report;
static std::atomic<bool> has_failed{false};

bool failed_last_grid()
{
    return has_failed.load(std::memory_order_relaxed);
}

void set_failed(bool failed)
{
    has_failed = failed;
}

std::string take_report()
{
    std::lock_guard<std::mutex> lock(report_mutex);
    std::string taken;

    taken.swap(first_report);
    return taken;
}

static std::string format_list(const char *format, va_list list)
{
    char text[2048];

    vsnprintf(text, sizeof text, format, list);
    return text;
}

std::string format_text(const char *format, ...)
{
    va_list list;

    va_start(list, format);
    std::string text = format_list(format, list);
    va_end(list);
    return text;
}

static void add_report(const std::string &text)
{
    std::lock_guard<std::mutex> lock(report_mutex);

    if (first_report.empty())
        first_report = text;
    if (!config.quiet)
        fputs(text.c_str(), stderr);
}

static std::string who()
{
    const Fiber *f = current;
    const uint3 b = f->block->index, t = f->tid;

    return format_text("kernel %s block (%u,%u,%u) thread (%u,%u,%u) warp %u lane %u", gang->kernel, b.x, b.y, b.z, t.x,
                       t.y, t.z, f->index / 32, f->lane);
}

[[noreturn]] static void report_and_abandon(const std::string &what, const std::string &source)
{
    add_report("emulator: " + what + "\n  in " + who() + "\n  at " + source + "\n");
    abandon_gang();
}

static std::string name_of(Loc w)
{
    return format_text("%s:%d", w.file ? w.file : "?", w.line);
}

void fail(Loc w, const char *format, ...)
{
    va_list list;

    va_start(list, format);
    std::string what = format_list(format, list);
    va_end(list);
    report_and_abandon(what, name_of(w));
}

void fail_at(const std::string &source, const char *format, ...)
{
    va_list list;

    va_start(list, format);
    std::string what = format_list(format, list);
    va_end(list);
    report_and_abandon(what, source);
}

void trap(const char *message, Loc w)
{
    fail(w, "%s", message);
}

// ---------------------------------------------------------------- deadlock

static std::string why_blocked(const Fiber *f, const Block &b)
{
    std::string text = format_text("%s at %s", f->why ? f->why : "ready", name_of(f->where).c_str());

    if (!f->why || !f->object)
        return text;
    if (!strcmp(f->why, "mbarrier wait")) {
        const Mbar *m = find_mbar(static_cast<const uint64_t *>(f->object));
        if (m)
            text += format_text(
                " (mbarrier at shared 0x%x of line %d: phase %u, %u of %u arrivals and %lld bytes missing)",
                smem_addr(m->at), m->where.line, m->phase & 1, m->pending, m->count, static_cast<long long>(m->bytes));
    } else if (!strcmp(f->why, "barrier")) {
        const Barrier *barrier = static_cast<const Barrier *>(f->object);
        text += format_text(" (barrier %d: %d of %d threads arrived)", static_cast<int>(barrier - b.barrier),
                            barrier->arrived, barrier->is_all ? static_cast<int>(b.live) : barrier->expected);
    } else if (!strcmp(f->why, "warp collective")) {
        for (const Collective &c : f->warp->open)
            if (c.arrived >> f->lane & 1)
                text += format_text(" (lanes %08x of %08x arrived)", c.arrived, c.mask);
    }
    return text;
}

// Blocked threads by reason, with the warps and lanes of each.
void fail_deadlock(const char *what)
{
    std::map<std::string, std::map<std::pair<uint32_t, uint32_t>, uint32_t>> groups;
    std::string text = format_text("emulator: %s in kernel %s\n", what, gang->kernel);

    for (const Block &b : gang->blocks)
        for (const Fiber *f : b.fibers)
            if (!f->is_done)
                groups[why_blocked(f, b)][{b.rank, f->index / 32}] |= 1u << f->lane;
    for (const auto &group : groups) {
        text += "  " + group.first + ":";
        size_t shown = 0;
        for (const auto &warp : group.second) {
            if (++shown > 12) {
                text += format_text(" and %zu warps more", group.second.size() - 12);
                break;
            }
            const uint3 b = gang->blocks[warp.first.first].index;
            text += format_text(" block (%u,%u,%u) warp %u", b.x, b.y, b.z, warp.first.second);
            if (warp.second != ~0u)
                text += format_text(" lanes %08x", warp.second);
        }
        text += "\n";
    }
    add_report(text);
    abandon_gang();
}

// ---------------------------------------------------------------- faults

static struct sigaction before[2]; // who handled SIGSEGV and SIGBUS before us

static std::string faulting_line(void *context)
{
    const greg_t pc = static_cast<ucontext_t *>(context)->uc_mcontext.gregs[REG_RIP];

    return source_line(reinterpret_cast<const char *>(pc) + 1);
}

static void on_fault(int signal_number, siginfo_t *info, void *context)
{
    if (!current) { // not in a kernel: back to whoever was there before, and fault again
        sigaction(signal_number, &before[signal_number == SIGBUS], nullptr);
        return;
    }
    const std::string line = faulting_line(context);
    const char *p = static_cast<const char *>(info->si_addr);
    const char *stack = current->stack;

    if (p >= stack - PAGE_BYTES && p < stack)
        fail_at(line, "stack overflow: a thread needs more than %zu bytes of local variables", STACK_BYTES);
    for (const Block &b : gang->blocks) {
        const char *end = reinterpret_cast<const char *>(b.smem) + b.smem_bytes;
        if (p >= end && p < end + 2 * PAGE_BYTES)
            fail_at(line, "access %zu bytes past the end of dynamic shared memory (%zu bytes)",
                    static_cast<size_t>(p - end), b.smem_bytes);
    }
    fail_at(line, "access to address %p: %s", info->si_addr, describe_global(p).c_str());
}

// Test frameworks install handlers of their own between grids, so each grid takes the signals and gives them back.
FaultSignals::FaultSignals()
{
    struct sigaction action = {};

    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before[0]);
    sigaction(SIGBUS, &action, &before[1]);
}

FaultSignals::~FaultSignals()
{
    sigaction(SIGSEGV, &before[0], nullptr);
    sigaction(SIGBUS, &before[1], nullptr);
}

// For the calling OS thread: the handler runs on a stack of its own and never returns into the kernel. The stack that
// was there before comes back when the thread ends: a sanitizer's runtime wants to release its own.
void install_fault_stack()
{
    constexpr size_t BYTES = 256 * 1024;
    struct FaultStack {
        FaultStack()
        {
            stack_t stack = {};

            stack.ss_size = BYTES;
            stack.ss_sp = memory = malloc(BYTES);
            sigaltstack(&stack, &before);
        }
        ~FaultStack()
        {
            sigaltstack(&before, nullptr);
            free(memory);
        }
        stack_t before;
        void *memory;
    };
    static thread_local FaultStack installed;

    (void)installed;
}

} // namespace simt
