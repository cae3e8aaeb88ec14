// Running a grid: gangs of blocks are built, handed to OS threads and run; what they did is added up.
#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <set>
#include <string>
#include <thread>

namespace simt
{

static long number_from_env(const char *name, long otherwise)
{
    const char *s = getenv(name);

    return s && *s ? atol(s) : otherwise;
}

static Config config_from_env()
{
    Config c;
    const char *async = getenv("SIMT_ASYNC");

    c.seed = static_cast<uint64_t>(number_from_env("SIMT_SEED", 0));
    c.threads = static_cast<int>(number_from_env("SIMT_THREADS", 0));
    c.check = number_from_env("SIMT_CHECK", 0) != 0;
    c.pdl = number_from_env("SIMT_PDL", 1) != 0;
    c.poison = number_from_env("SIMT_POISON", 1) != 0;
    if (async)
        c.async = *async == 'e' ? ASYNC_EARLY : *async == 'r' ? ASYNC_RANDOM : ASYNC_LATE;
    return c;
}
Config config = config_from_env();

// ---------------------------------------------------------------- one gang

namespace
{

constexpr size_t ARENA_BYTES = 256 * 1024;

struct Grid {
    dim3 grid, block, cluster;
    size_t smem;
    const char *name;
    const std::function<void()> *body;
    bool is_programmatic;
    std::atomic<uint64_t> next{0};
    std::atomic<bool> launched_before_wait{false};
    std::mutex mutex; // of counters
    Counters counters;
};

// What an OS thread keeps from gang to gang.
struct Worker {
    Gang gang;
    std::vector<Fiber *> fibers;
    std::vector<unsigned char *> arenas;
};
thread_local Worker *worker = nullptr;

// Threads that launch come and go; what they worked with stays for the next ones. (Never destroyed: threads outlive
// main.)
std::mutex idle_mutex;
std::vector<Worker *> &idle = *new std::vector<Worker *>;
struct WorkerLease {
    WorkerLease()
    {
        std::lock_guard<std::mutex> lock(idle_mutex);
        if (idle.empty())
            idle.push_back(new Worker);
        worker = idle.back();
        idle.pop_back();
    }
    ~WorkerLease()
    {
        std::lock_guard<std::mutex> lock(idle_mutex);
        idle.push_back(worker);
    }
};

void add(Counters &to, const Counters &c)
{
    to.bulk_load_bytes += c.bulk_load_bytes;
    to.bulk_store_bytes += c.bulk_store_bytes;
    to.bulk_prefetch_bytes += c.bulk_prefetch_bytes;
    to.cp_async_bytes += c.cp_async_bytes;
    to.global_read_bytes += c.global_read_bytes;
    to.global_write_bytes += c.global_write_bytes;
    to.wgmma_flops += c.wgmma_flops;
    to.mma_flops += c.mma_flops;
    to.barriers += c.barriers;
    to.collectives += c.collectives;
}

uint32_t volume(dim3 d)
{
    return d.x * d.y * d.z;
}

void reset_fiber(Fiber *f)
{
    f->is_done = f->is_wgmma_fenced = f->has_arrived_cluster = false;
    f->why = nullptr;
    f->copies.clear();
    f->copy_groups.clear();
    f->copies_base = 0;
    f->stores.clear();
    f->store_groups.clear();
    f->wgmmas.clear();
    f->held_registers.clear();
    f->wgmmas_base = f->wgmma_groups = 0;
    f->fence_seen.clear();
}

void build_threads(Block &b, const Grid &g)
{
    const uint32_t n = b.n_threads;

    b.warps.resize((n + 31) / 32);
    b.groups.resize((n + 127) / 128);
    for (Warpgroup &w : b.groups) {
        w.done_groups = 0;
        w.group_end.clear();
        w.group_lanes.clear();
        w.waiters = WaitList();
    }
    b.fibers.resize(n);
    for (uint32_t i = 0; i < n; i++) {
        Fiber *f = worker->fibers[b.rank * n + i];
        reset_fiber(f);
        f->block = &b;
        f->warp = &b.warps[i / 32];
        f->group = &b.groups[i / 128];
        f->group->fiber[i % 128] = f;
        f->index = i;
        f->lane = i % 32;
        f->id = b.rank * n + i;
        f->tid = {i % g.block.x, i / g.block.x % g.block.y, i / g.block.x / g.block.y};
        b.fibers[i] = f;
        prepare_fiber(f, f->id);
        enqueue(f);
    }
    for (uint32_t i = 0; i < b.warps.size(); i++) {
        const uint32_t lanes = std::min(32u, n - i * 32);
        b.warps[i].lanes = b.warps[i].live = lanes == 32 ? ~0u : (1u << lanes) - 1;
        b.warps[i].open.clear();
    }
}

void build_block(Block &b, const Grid &g, uint32_t rank, uint3 first)
{
    const size_t room = (g.smem + 1023) & ~static_cast<size_t>(1023);

    b.rank = rank;
    b.index = {first.x + rank % g.cluster.x, first.y + rank / g.cluster.x % g.cluster.y,
               first.z + rank / g.cluster.x / g.cluster.y};
    b.n_threads = b.live = volume(g.block);
    b.smem = worker->arenas[rank] + ARENA_BYTES - room;
    b.smem_bytes = g.smem;
    b.has_waited = b.launched_before_wait = false;
    if (config.poison)
        memset(b.smem, 0xff, room); // NaN as fp32, bf16 and fp16
    for (Barrier &barrier : b.barrier)
        barrier = Barrier();
    build_threads(b, g);
}

void build_gang(Gang &g, const Grid &grid, uint64_t index)
{
    const uint32_t n_blocks = volume(grid.cluster), n_fibers = n_blocks * volume(grid.block);
    const dim3 clusters(grid.grid.x / grid.cluster.x, grid.grid.y / grid.cluster.y, grid.grid.z / grid.cluster.z);
    const uint3 first = {static_cast<uint32_t>(index % clusters.x) * grid.cluster.x,
                         static_cast<uint32_t>(index / clusters.x % clusters.y) * grid.cluster.y,
                         static_cast<uint32_t>(index / clusters.x / clusters.y) * grid.cluster.z};
    uint32_t capacity = 64;

    g.kernel = grid.name;
    g.body = grid.body;
    g.is_programmatic = grid.is_programmatic;
    g.has_failed = false;
    g.async.clear();
    g.mbars.clear();
    g.cluster = Barrier();
    g.cluster_phase = 0;
    g.random = (config.seed * 0x9e3779b97f4a7c15ull) ^ ((index + 1) * 0xd1b54a32d192ed03ull);
    g.spins = g.starved_for = 0;
    g.head = g.tail = 0;
    g.live = n_fibers;
    g.counters = Counters();
    while (capacity < n_fibers * 2)
        capacity *= 2;
    if (g.ready.size() < capacity)
        g.ready.resize(capacity);
    g.mask = static_cast<uint32_t>(g.ready.size()) - 1;
    while (worker->fibers.size() < n_fibers)
        worker->fibers.push_back(new Fiber);
    while (worker->arenas.size() < n_blocks)
        worker->arenas.push_back(reinterpret_cast<unsigned char *>(map_guarded(ARENA_BYTES)));
    g.blocks.resize(n_blocks);
    for (uint32_t rank = 0; rank < n_blocks; rank++)
        build_block(g.blocks[rank], grid, rank, first);
}

void run_gang(Grid &grid, uint64_t index)
{
    static thread_local WorkerLease lease;
    (void)lease;
    install_fault_stack();
    Gang &g = worker->gang;

    gang = &g;
    build_gang(g, grid, index);
    if (config.poison) {
        const StaticShared shared = static_shared();
        if (shared.is_exact)
            memset(shared.at, 0xff, shared.bytes);
    }
    check_start(g);
    blockDim = {grid.block.x, grid.block.y, grid.block.z};
    gridDim = {grid.grid.x, grid.grid.y, grid.grid.z};
    run_fibers();
    check_end(g);
    for (const Block &b : g.blocks)
        if (b.launched_before_wait)
            grid.launched_before_wait = true;
    gang = nullptr;
    std::lock_guard<std::mutex> lock(grid.mutex);
    add(grid.counters, g.counters);
}

void run_some(Grid &grid, uint64_t n)
{
    for (uint64_t i; !failed_last_grid() && (i = grid.next.fetch_add(1)) < n;)
        run_gang(grid, i);
}

// ---------------------------------------------------------------- OS threads

// A fixed set of threads; the launching one works too. They live as long as the process.
class Pool
{
  public:
    explicit Pool(int n) : n_threads(n)
    {
        for (int i = 0; i < n; i++)
            std::thread([this] { serve(); }).detach();
    }
    void run(const std::function<void()> &work)
    {
        {
            std::lock_guard<std::mutex> lock(mutex);
            job = &work;
            generation++;
            n_busy = n_threads;
        }
        start.notify_all();
        work();
        std::unique_lock<std::mutex> lock(mutex);
        done.wait(lock, [this] { return n_busy == 0; });
    }

  private:
    void serve()
    {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex);

        for (;;) {
            start.wait(lock, [&] { return generation != seen; });
            seen = generation;
            const std::function<void()> *work = job;
            lock.unlock();
            (*work)();
            lock.lock();
            if (--n_busy == 0)
                done.notify_all();
        }
    }
    const int n_threads;
    std::mutex mutex;
    std::condition_variable start, done;
    const std::function<void()> *job = nullptr;
    uint64_t generation = 0;
    int n_busy = 0;
};

std::mutex records_mutex;
std::vector<LaunchRecord> records;
constexpr size_t RECORDS_MAX = 65536;

// SIMT_TRACE=FILE: a line "kernel<TAB>threads<TAB>dynamic shared bytes" for each different launch, appended, for
// tests/tools/kernel_budget.py.
void trace_launch(const char *name, dim3 block, size_t smem)
{
    static const char *path = getenv("SIMT_TRACE");
    static std::set<std::string> seen;
    std::string line;

    if (!path)
        return;
    line = std::string(name) + "\t" + std::to_string(volume(block)) + "\t" + std::to_string(smem) + "\n";
    if (!seen.insert(line).second)
        return;
    if (FILE *file = fopen(path, "a")) {
        fputs(line.c_str(), file);
        fclose(file);
    }
}

} // namespace

std::vector<LaunchRecord> take_launches()
{
    std::lock_guard<std::mutex> lock(records_mutex);
    std::vector<LaunchRecord> taken;

    taken.swap(records);
    return taken;
}

void run_grid(dim3 grid, dim3 block, size_t smem, dim3 cluster, const char *name, const std::function<void()> &body,
              bool programmatic)
{
    static std::mutex one_at_a_time;
    std::lock_guard<std::mutex> guard(one_at_a_time);
    const FaultSignals signals;
    const int n_threads = config.threads > 0 ? config.threads : static_cast<int>(std::thread::hardware_concurrency());
    const uint64_t n = static_cast<uint64_t>(grid.x) * grid.y * grid.z / volume(cluster);
    Grid g;

    g.grid = grid;
    g.block = block;
    g.cluster = cluster;
    g.smem = smem;
    g.name = name;
    g.body = &body;
    g.is_programmatic = programmatic;
    set_failed(false);
    check_grid_start(programmatic);
    if (n_threads <= 1 || n == 1) {
        run_some(g, n);
    } else {
        static Pool *pool = new Pool(n_threads - 1);
        pool->run([&] { run_some(g, n); });
    }
    check_grid_end(g.launched_before_wait);
    std::lock_guard<std::mutex> lock(records_mutex);
    trace_launch(name, block, smem);
    if (records.size() >= RECORDS_MAX)
        records.erase(records.begin(), records.begin() + RECORDS_MAX / 2);
    records.push_back({name, grid, block, cluster, smem, programmatic, g.counters});
}

} // namespace simt
