// Data that the emulation's own files share. Everything here belongs to one gang and so to one OS thread, except what a
// comment says is global.
#pragma once

#include <stdarg.h>
#include <algorithm>
#include <deque>
#include <string>
#include <vector>

#include "simt.h"
#include "simt/host.h"
#include "simt/prim_host.h"
#include "tensor_map.h"

namespace simt
{

struct Block;
struct Gang;
struct Warp;
struct Warpgroup;

// A vector clock, one entry a thread of the gang and two more (check.h). Empty while checks are off.
using Clock = std::vector<uint32_t>;

struct CpAsync {
    void *to;
    const void *from;
    bool pred, done;
    uint32_t issued; // for the checks
    Loc where;
};

// A store from shared to global memory: reading the source and writing the destination are waited for separately.
struct BulkStore {
    TensorMap map; // rank 0: linear
    char *to;
    const unsigned char *from;
    uint32_t bytes;
    int at[5];
    std::vector<unsigned char> data; // what was read, until it is written
    bool is_read, is_waited;
    uint32_t number; // for the checks
    Loc where;
};

// Registers of A that a wgmma of group number `group` may still read.
struct HeldRegisters {
    const uint32_t *at;
    uint32_t value[4], group;
    Loc where;
};

// One CUDA thread.
struct Fiber {
    void *sp = nullptr;    // stack pointer while it does not run
    char *stack = nullptr; // lowest address of its stack
    Fiber *link = nullptr; // next in a wait list
    Block *block = nullptr;
    Warp *warp = nullptr;
    Warpgroup *group = nullptr;
    uint3 tid = {0, 0, 0};
    uint32_t index = 0, lane = 0; // in the block, in the warp
    uint32_t id = 0;              // in the gang: rank * threads + index
    bool is_done = false;
    const char *why = nullptr; // what it waits for, and at what object
    const void *object = nullptr;
    Loc where = {nullptr, 0};
    int bar_result = 0;
    uint32_t cluster_phase = 0;
    bool has_arrived_cluster = false;

    std::vector<CpAsync> copies; // cp.async issued; copies[0] has number copies_base
    std::vector<uint64_t> copy_groups;
    uint64_t copies_base = 0;
    std::vector<BulkStore> stores;
    std::vector<uint32_t> store_groups; // stores.size() at each commit
    std::vector<Wgmma> wgmmas;          // issued; wgmmas[0] has number wgmmas_base
    uint32_t wgmmas_base = 0, wgmma_groups = 0;
    std::vector<HeldRegisters> held_registers; // of wgmmas that this thread has not waited for
    bool is_wgmma_fenced = false;

    Clock clock;
    Clock fence_seen; // clock at the last proxy fence
};

struct WaitList {
    Fiber *head = nullptr, *tail = nullptr;
    void push(Fiber *f)
    {
        f->link = nullptr;
        (tail ? tail->link : head) = f;
        tail = f;
    }
};

struct Collective {
    CollectiveKind kind;
    uint32_t mask, arrived;
    CollectiveBody body;
    void *slot[32];
    Fiber *fiber[32];
};
struct Warp {
    uint32_t lanes = 0, live = 0; // that exist, that have not exited
    std::vector<Collective> open; // waiting for lanes
};

// Four warps: what issues wgmma.
struct Warpgroup {
    Fiber *fiber[128] = {};
    uint32_t done_groups = 0;
    std::vector<uint32_t> group_end;   // of each group: number of wgmmas when it was committed
    std::vector<uint32_t> group_lanes; // of each group: threads that have committed it
    WaitList waiters;
};

struct Barrier {
    int arrived = 0, expected = 0, sum = 0;
    bool is_all = false; // of all threads that have not exited
    WaitList waiters;
    Clock clock;
};

struct Block {
    uint3 index = {0, 0, 0};
    uint32_t rank = 0, live = 0, n_threads = 0;
    unsigned char *smem = nullptr; // dynamic shared memory; ends at a guard page
    size_t smem_bytes = 0;         // rounded up to 16
    bool has_waited = false;       // some thread has called griddep_wait
    bool launched_before_wait = false;
    Barrier barrier[16];
    std::vector<Warp> warps;
    std::vector<Warpgroup> groups;
    std::vector<Fiber *> fibers;
};

struct Mbar {
    uint64_t *at = nullptr;
    uint32_t count = 0, pending = 0, phase = 0;
    int64_t bytes = 0;
    WaitList waiters;
    Clock next, done;                                       // clocks of arrivals: of this phase, of completed ones
    uint32_t init_thread = 0, init_clock = 0, n_copies = 0; // of the checks
    Loc where = {nullptr, 0};
    // What lies in shared memory, so that overwriting it is seen.
    uint64_t word() const
    {
        return 0x5d00000000000000ull | static_cast<uint64_t>(phase & 0xffff) << 20 | pending;
    }
};

// A copy into shared memory that completes on an mbarrier, or an arrival that waits for cp.async copies.
struct AsyncOp {
    TensorMap map; // a copy: kernel parameters may die before it runs; rank 0: linear
    unsigned char *to;
    const char *from;
    uint32_t bytes;
    uint64_t *bar;
    int at[5];
    Fiber *copier; // not null: arrive once its copies before number copies_end have landed
    uint64_t copies_end;
    Block *block;
    uint32_t thread;
    Clock clock;
    Loc where;
};

// Blocks that run interleaved on one OS thread: one, or a whole cluster.
struct Gang {
    std::vector<Block> blocks;
    std::vector<Fiber *> ready; // ring of a power of two
    uint32_t head = 0, tail = 0, mask = 0, live = 0;
    std::deque<AsyncOp> async;
    std::vector<Mbar> mbars;
    Barrier cluster;
    uint32_t cluster_phase = 0;
    const std::function<void()> *body = nullptr;
    const char *kernel = "";
    bool is_programmatic = false, has_failed = false;
    uint64_t random = 0, spins = 0;
    const Warp *starved = nullptr; // with a seed: seldom drawn
    uint64_t starved_for = 0;      // draws from now on
    Counters counters;
};

extern thread_local Fiber *current; // null outside kernels
extern thread_local Gang *gang;

// fibers.cc
constexpr size_t STACK_BYTES = 128 * 1024, PAGE_BYTES = 4096;
char *map_guarded(size_t bytes); // an inaccessible page on each side
void prepare_fiber(Fiber *f, uint32_t number);
void run_fibers(); // until all have ended or the gang was abandoned
[[noreturn]] void abandon_gang();
void enqueue(Fiber *f);
void wake(Fiber *f);
void wake_all(WaitList &list);
void park(const char *why, const void *object, Loc w);
uint64_t random_bits();

// barriers.cc
void release_barriers_of(Block &block); // after a thread has exited
void cluster_thread_exited();
void check_collectives_at_exit(const Fiber *f); // collectives.cc

// mbarrier.cc, copies.cc
Mbar *find_mbar(const uint64_t *b);
void mbar_arrive_op(uint64_t *b, const AsyncOp &op);
void mbar_complete(uint64_t *b, uint32_t bytes, const AsyncOp &op);
void submit_async(AsyncOp &&op);
void run_async(const AsyncOp &op);
void land_copies(Fiber *f, uint64_t end); // cp.async before number end
void check_copies_at_exit(Fiber *f);
void check_copies_landed(); // at the end of the gang
// box_rows.cc: walks the rows of a tensor map's box
void tensor_load(const TensorMap &map, unsigned char *to, const int *at);
void tensor_store(const TensorMap &map, const unsigned char *from, const int *at);

// wgmma.cc, matrix.cc
void check_wgmma_at_exit(Fiber *f);
inline float bf16_value(uint16_t bits)
{
    return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
// c[64][n] += a^T b with a as [16][64], b as [16][n]: every value one chain of fp32 sums in ascending order.
void product_64(float *c, const float *a, const float *b, int n);

// report.cc
[[noreturn]] void fail(Loc w, const char *format, ...) __attribute__((format(printf, 2, 3)));
// Fails from a place without a line of its own: the text names it.
[[noreturn]] void fail_at(const std::string &source, const char *format, ...) __attribute__((format(printf, 2, 3)));
[[noreturn]] void fail_deadlock(const char *what);
std::string format_text(const char *format, ...) __attribute__((format(printf, 1, 2)));
void install_fault_stack();
// While it lives, faults of kernels become reports.
struct FaultSignals {
    FaultSignals();
    ~FaultSignals();
};
void set_failed(bool failed);

// symbols.cc
std::string source_line(
    const void *return_address); // "file:line", with the callers it was inlined into; "?" if unknown
struct StaticShared {
    char *at; // this OS thread's copy
    size_t bytes;
    bool is_exact; // else all thread locals of the program, ours among them (host.h: __shared__)
};
StaticShared static_shared(); // of the program

// addresses
Block *block_of(const void *p); // whose dynamic shared memory holds p; null if none
unsigned char *smem_at(const Block &block, uint32_t address);

} // namespace simt
