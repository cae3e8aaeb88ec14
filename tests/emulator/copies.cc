// Asynchronous copies: bulk and tensor loads, bulk and tensor stores, cp.async.
//
// A copy is queued at issue and performed later, as late as the rules allow: a load when every thread of the gang is
// blocked, a store or a cp.async when its issuer waits for it. A kernel that forgets to wait then reads poison; one
// that writes a source too soon sends the wrong bytes. In early mode everything happens at issue: a kernel that fills a
// buffer before its readers have finished shows. Random mode is in between.
#include "check.h"

#include <string.h>

namespace simt
{

// ---------------------------------------------------------------- loads into shared memory

static void need_room(const void *smem, uint32_t bytes, const char *what, Loc w)
{
    const Block *b = block_of(smem);

    if (b && static_cast<const unsigned char *>(smem) + bytes > b->smem + b->smem_bytes)
        fail(w, "%s of %u bytes at shared 0x%x runs past the end of dynamic shared memory (%zu bytes)", what, bytes,
             smem_addr(smem), b->smem_bytes);
}

static AsyncOp make_op(void *to, uint64_t *bar, Loc w)
{
    AsyncOp op = {};

    op.to = static_cast<unsigned char *>(to);
    op.bar = bar;
    op.block = current->block;
    op.thread = current->id;
    op.where = w;
    check_release(current, op.clock);
    return op;
}

void submit_async(AsyncOp &&op)
{
    if (config.async == ASYNC_EARLY)
        run_async(op);
    else
        gang->async.push_back(std::move(op));
}

void run_async(const AsyncOp &op)
{
    if (op.copier) {
        land_copies(op.copier, op.copies_end);
        mbar_arrive_op(op.bar, op);
        return;
    }
    AsyncOp done = op; // whoever waits for the mbarrier acquires the copy as well
    check_async_write(op.to, op.bytes, op, done.clock);
    if (op.map.rank)
        tensor_load(op.map, op.to, op.at);
    else
        memcpy(op.to, op.from, op.bytes);
    mbar_complete(op.bar, op.bytes, done);
}

void bulk_load(void *smem, const void *global, uint32_t bytes, uint64_t *b, Loc w)
{
    if ((reinterpret_cast<uintptr_t>(smem) | reinterpret_cast<uintptr_t>(global) | bytes) & 15)
        fail(w, "bulk load: addresses and size must be multiples of 16 (shared 0x%x, global %p, %u bytes)",
             smem_addr(smem), global, bytes);
    if (!bytes)
        fail(w, "bulk load of no bytes");
    need_room(smem, bytes, "bulk load", w);
    check_global(global, bytes, READ, "bulk load", w);
    AsyncOp op = make_op(smem, b, w);
    op.from = static_cast<const char *>(global);
    op.bytes = bytes;
    gang->counters.bulk_load_bytes += bytes;
    submit_async(std::move(op));
}

void bulk_prefetch(const void *global, uint32_t bytes, Loc w)
{
    if ((reinterpret_cast<uintptr_t>(global) | bytes) & 15)
        fail(w, "bulk prefetch: address and size must be multiples of 16");
    if (global_check(global, bytes))
        fail(w, "bulk prefetch of %u bytes out of bounds: %s", bytes, describe_global(global).c_str());
    gang->counters.bulk_prefetch_bytes += bytes;
}

static const TensorMap &decode(const CUtensorMap *map, int rank, const void *smem, Loc w)
{
    const TensorMap &t = *reinterpret_cast<const TensorMap *>(map);

    if (t.magic != TensorMap::MAGIC)
        fail(w, "not an encoded tensor map");
    if (reinterpret_cast<uintptr_t>(map) & 63)
        fail(w, "the tensor map is not 64-byte aligned");
    if (t.rank != rank)
        fail(w, "the tensor map has rank %d, the instruction %d", t.rank, rank);
    if (reinterpret_cast<uintptr_t>(smem) & 127)
        fail(w, "tensor copy: shared 0x%x is not 128-byte aligned", smem_addr(smem));
    need_room(smem, t.box_bytes, "tensor copy", w);
    return t;
}

void tma_load(void *smem, const CUtensorMap *map, uint64_t *b, const int *at, int rank, Loc w)
{
    const TensorMap &t = decode(map, rank, smem, w);
    AsyncOp op = make_op(smem, b, w);

    check_global(t.base, 1, READ, "tensor load", w);
    op.map = t;
    op.bytes = t.box_bytes;
    std::copy(at, at + rank, op.at);
    gang->counters.bulk_load_bytes += op.bytes;
    submit_async(std::move(op));
}

// ---------------------------------------------------------------- stores to global memory

static void read_source(BulkStore &s)
{
    if (s.is_read)
        return;
    s.data.assign(s.from, s.from + s.bytes);
    s.is_read = true;
}

static void write_target(BulkStore &s)
{
    if (!s.map.rank)
        memcpy(s.to, s.data.data(), s.bytes);
    else {
        // The swizzle acts on address bits, so the copy is laid out at the same offset in a 1024-byte pattern.
        std::vector<unsigned char> aligned(s.bytes + 2048);
        unsigned char *at = aligned.data() + (-reinterpret_cast<uintptr_t>(aligned.data()) & 1023) +
                            (reinterpret_cast<uintptr_t>(s.from) & 1023);
        memcpy(at, s.data.data(), s.bytes);
        tensor_store(s.map, at, s.at);
    }
}

static void add_store(BulkStore &&s)
{
    s.number = check_store_source(current, s.from, s.bytes, s.where);
    gang->counters.bulk_store_bytes += s.bytes;
    if (config.async == ASYNC_EARLY || (config.async == ASYNC_RANDOM && random_bits() % 2))
        read_source(s);
    if (config.async == ASYNC_EARLY)
        write_target(s);
    current->stores.push_back(std::move(s));
}

void bulk_store(void *global, const void *smem, uint32_t bytes, Loc w)
{
    BulkStore s = {};

    if ((reinterpret_cast<uintptr_t>(smem) | reinterpret_cast<uintptr_t>(global) | bytes) & 15)
        fail(w, "bulk store: addresses and size must be multiples of 16 (shared 0x%x, global %p, %u bytes)",
             smem_addr(smem), global, bytes);
    need_room(smem, bytes, "bulk store", w);
    check_global(global, bytes, WRITE, "bulk store", w);
    s.to = static_cast<char *>(global);
    s.from = static_cast<const unsigned char *>(smem);
    s.bytes = bytes;
    s.where = w;
    add_store(std::move(s));
}

void tma_store(const CUtensorMap *map, const void *smem, const int *at, int rank, Loc w)
{
    BulkStore s = {};

    s.map = decode(map, rank, smem, w);
    check_global(s.map.base, 1, WRITE, "tensor store", w);
    s.from = static_cast<const unsigned char *>(smem);
    s.bytes = s.map.box_bytes;
    std::copy(at, at + rank, s.at);
    s.where = w;
    add_store(std::move(s));
}

void bulk_commit()
{
    current->store_groups.push_back(static_cast<uint32_t>(current->stores.size()));
}

// Reads the sources of all groups but the last `keep`, and, unless is_read_only, writes and forgets them.
void bulk_wait(int keep, bool is_read_only)
{
    Fiber *f = current;
    const size_t n_groups = f->store_groups.size();

    if (n_groups <= static_cast<size_t>(keep))
        return;
    const uint32_t n = f->store_groups[n_groups - static_cast<size_t>(keep) - 1];
    if (n == 0)
        return;
    for (uint32_t i = 0; i < n; i++) {
        read_source(f->stores[i]);
        f->stores[i].is_waited = true;
    }
    check_store_wait(f, f->stores[n - 1].number);
    if (is_read_only)
        return;
    if (config.async != ASYNC_EARLY)
        for (uint32_t i = 0; i < n; i++)
            write_target(f->stores[i]);
    f->stores.erase(f->stores.begin(), f->stores.begin() + n);
    f->store_groups.erase(f->store_groups.begin(), f->store_groups.end() - keep);
    for (uint32_t &g : f->store_groups)
        g -= n;
}

// Shared memory may be gone once the block has exited: sources must have been read by then. Writes that are still under
// way complete before the grid does.
void check_copies_at_exit(Fiber *f)
{
    for (BulkStore &s : f->stores) {
        if (f->store_groups.empty() || &s - f->stores.data() >= f->store_groups.back())
            fail(s.where, "thread exits with a bulk store that was never committed");
        if (!s.is_waited)
            fail(s.where, "thread exits without waiting for its bulk store: the source may be gone before it is read");
        if (config.async != ASYNC_EARLY)
            write_target(s);
    }
}

// ---------------------------------------------------------------- cp.async

static void land(CpAsync &c)
{
    if (c.done)
        return;
    if (c.pred)
        memcpy(c.to, c.from, 16);
    else
        memset(c.to, 0, 16);
    c.done = true;
}

void cp_async16(void *smem, const void *global, bool pred, Loc w)
{
    CpAsync c = {smem, global, pred, false, 0, w};

    if ((reinterpret_cast<uintptr_t>(smem) | (pred ? reinterpret_cast<uintptr_t>(global) : 0)) & 15)
        fail(w, "cp.async: shared 0x%x or global %p is not 16-byte aligned", smem_addr(smem), global);
    need_room(smem, 16, "cp.async", w);
    if (pred) {
        check_global(global, 16, READ, "cp.async", w);
        gang->counters.cp_async_bytes += 16;
    }
    c.issued = check_copy_issue(smem, w);
    if (config.async == ASYNC_EARLY || (config.async == ASYNC_RANDOM && random_bits() % 2))
        land(c);
    current->copies.push_back(c);
}

void land_copies(Fiber *f, uint64_t end)
{
    if (end <= f->copies_base)
        return;
    const size_t n = std::min<size_t>(end - f->copies_base, f->copies.size());
    for (size_t i = 0; i < n; i++) {
        land(f->copies[i]);
        check_copy_landed(f, f->copies[i]);
    }
    f->copies.erase(f->copies.begin(), f->copies.begin() + static_cast<ptrdiff_t>(n));
    f->copies_base += n;
}

// All copies count as waited for once an mbarrier or cp_async_wait() has landed them.
void check_copies_landed()
{
    for (const Block &b : gang->blocks)
        for (const Fiber *f : b.fibers)
            if (!f->copies.empty())
                fail(f->copies.front().where, "block exits with a cp.async of thread %u still in flight", f->index);
}

void cp_async_commit()
{
    current->copy_groups.push_back(current->copies_base + current->copies.size());
}

void cp_async_wait(int keep)
{
    Fiber *f = current;
    const size_t n_groups = f->copy_groups.size();

    if (n_groups <= static_cast<size_t>(keep))
        return;
    land_copies(f, f->copy_groups[n_groups - static_cast<size_t>(keep) - 1]);
    f->copy_groups.erase(f->copy_groups.begin(), f->copy_groups.end() - keep);
}

void mbar_arrive_cp_async(uint64_t *b, Loc w)
{
    AsyncOp op = make_op(nullptr, b, w);

    op.copier = current;
    op.copies_end = current->copies_base + current->copies.size();
    submit_async(std::move(op));
}

void fence_proxy_async()
{
    check_proxy_fence(current);
}

} // namespace simt
