// wgmma: recorded by each thread at issue, performed for the whole warpgroup when somebody waits for it.
//
// Registers of A are taken at issue, and must be as they were when the wgmma is waited for; the array that stands for
// them must live so long. Operands in shared memory are read as late as the hardware might read them, so that a stage
// released before its wgmma has been waited for gives a wrong result here too; in early mode they are read at commit.
// Values are fp32 sums in ascending order of k, each column independent of N and of where A lies: kernels that promise
// equal bits can be held to it. (The tensor core's own rounding differs; only a GPU tells it.)
#include "check.h"

#include <algorithm>
#include <string.h>

namespace simt
{

constexpr int K = 16, M = 64, N_MAX = 256;

namespace
{

struct Descriptor {
    unsigned char *start;
    uint32_t leading, stride;
};

// A tile of N or 64 rows by 16, as the descriptor and its major-ness say, chunk by chunk of 8 values.
struct Operand {
    Descriptor d;
    const Block *block;
    bool is_mn_major;
    int rows;
    Loc where;
};

} // namespace

uint64_t wgmma_descriptor(const void *smem, uint32_t leading_bytes, Loc w)
{
    const Block *b = block_of(smem);
    const uint64_t swizzle_128 = 1, stride_bytes = 1024;

    if (!b || b != current->block)
        fail(w, "wgmma descriptor of something that is not in the block's dynamic shared memory");
    const uint32_t address = smem_addr(smem) & 0x3ffff;
    if (address & 15)
        fail(w, "wgmma descriptor: shared 0x%x is not 16-byte aligned", address);
    if (address & 0x380)
        fail(w, "wgmma descriptor: shared 0x%x does not start at a 1024-byte pattern of the swizzle", address);
    return static_cast<uint64_t>(address >> 4) | static_cast<uint64_t>(leading_bytes >> 4) << 16 |
           stride_bytes >> 4 << 32 | swizzle_128 << 62;
}

static Descriptor decode(uint64_t bits, const Block &b, Loc w)
{
    Descriptor d;

    d.start = smem_at(b, static_cast<uint32_t>(bits & 0x3fff) << 4);
    d.leading = static_cast<uint32_t>(bits >> 16 & 0x3fff) << 4;
    d.stride = static_cast<uint32_t>(bits >> 32 & 0x3fff) << 4;
    if (bits >> 62 != 1 || (bits >> 46 & 0xffff) != 0)
        fail(w, "wgmma descriptor %016llx: not the 128-byte swizzle, or bits set that must be zero",
             static_cast<unsigned long long>(bits));
    if (d.start < b.smem || d.start >= b.smem + b.smem_bytes)
        fail(w, "wgmma descriptor: shared 0x%x is outside dynamic shared memory",
             static_cast<uint32_t>(bits & 0x3fff) << 4);
    return d;
}

// The swizzle acts on address bits, as it did when the tile was written.
static const unsigned char *chunk_at(const Operand &o, uint32_t offset)
{
    const uintptr_t linear = reinterpret_cast<uintptr_t>(o.d.start) + offset;
    const unsigned char *p = reinterpret_cast<const unsigned char *>(linear ^ ((linear >> 7 & 7) << 4));

    if (p < o.block->smem || p + 16 > o.block->smem + o.block->smem_bytes)
        fail(o.where, "wgmma operand runs past the end of dynamic shared memory");
    return p;
}

// Calls f(chunk, row, k) for each 16-byte chunk: 8 values along K from (row, k) on, or, MN-major, 8 rows at k.
template <class F> static void for_chunks(const Operand &o, F f)
{
    if (o.is_mn_major) {
        for (int k = 0; k < K; k++)
            for (int row = 0; row < o.rows; row += 8)
                f(chunk_at(o, static_cast<uint32_t>(k / 8) * o.d.stride + static_cast<uint32_t>(k % 8 * 128 + row * 2)),
                  row, k);
    } else {
        for (int row = 0; row < o.rows; row++)
            for (int k = 0; k < K; k += 8)
                f(chunk_at(o,
                           static_cast<uint32_t>(row / 8) * o.d.stride + static_cast<uint32_t>(row % 8 * 128 + k * 2)),
                  row, k);
    }
}

// Into out[k][row].
static void load_operand(const Operand &o, float *out)
{
    for_chunks(o, [&](const unsigned char *chunk, int row, int k) {
        uint16_t bits[8];
        memcpy(bits, chunk, 16);
        if (o.is_mn_major)
            for (int i = 0; i < 8; i++)
                out[k * o.rows + row + i] = bf16_value(bits[i]);
        else
            for (int i = 0; i < 8; i++)
                out[(k + i) * o.rows + row] = bf16_value(bits[i]);
    });
}

static Operand operand_a(const Wgmma &op, const Block &b)
{
    return {decode(op.a, b, op.where), &b, false, M, op.where};
}

static Operand operand_b(const Wgmma &op, const Block &b)
{
    return {decode(op.b, b, op.where), &b, op.is_b_mn_major, op.n, op.where};
}

// Lane 0 of each warp answers for what its warp reads: its rows of A, a quarter of B.
static void check_operands(Fiber *f, const Wgmma &op)
{
    const int warp = static_cast<int>(f->index / 32 % 4);

    if (!is_checking() || f->lane != 0)
        return;
    if (!op.is_a_regs)
        for_chunks(operand_a(op, *f->block), [&](const unsigned char *chunk, int row, int) {
            if (row / 16 == warp)
                check_wgmma_operand(f, chunk, 16, op.where);
        });
    for_chunks(operand_b(op, *f->block), [&](const unsigned char *chunk, int row, int k) {
        if ((op.n >= 32 ? row / 8 : k / 4) % 4 == warp)
            check_wgmma_operand(f, chunk, 16, op.where);
    });
}

// ---------------------------------------------------------------- fragments

// Register q of thread t's A fragment holds two values of one row, k and k + 1.
static void load_a_registers(const Warpgroup &g, uint32_t number, float *out)
{
    for (int t = 0; t < 128; t++) {
        const Fiber *f = g.fiber[t];
        const uint32_t *regs = f->wgmmas[number - f->wgmmas_base].a_regs;
        for (int q = 0; q < 4; q++) {
            const int row = 16 * (t / 32) + t % 32 / 4 + 8 * (q & 1), k = t % 4 * 2 + 8 * (q >> 1);
            out[k * M + row] = bf16_value(static_cast<uint16_t>(regs[q]));
            out[(k + 1) * M + row] = bf16_value(static_cast<uint16_t>(regs[q] >> 16));
        }
    }
}

// Registers 4 j .. 4 j + 3 of thread t: columns 8 j + 2 (t % 4) and the next, of row 16 (t / 32) + t % 32 / 4 and of
// row + 8.
static void move_accumulators(const Warpgroup &g, uint32_t number, int n, float *c, bool is_load)
{
    for (int t = 0; t < 128; t++) {
        const Fiber *f = g.fiber[t];
        float *acc = f->wgmmas[number - f->wgmmas_base].acc;
        float *upper = c + (16 * (t / 32) + t % 32 / 4) * n + 2 * (t % 4), *lower = upper + 8 * n;
        for (int i = 0; i < n / 2; i += 4, upper += 8, lower += 8) {
            if (is_load) {
                memcpy(upper, acc + i, 8);
                memcpy(lower, acc + i + 2, 8);
            } else {
                memcpy(acc + i, upper, 8);
                memcpy(acc + i + 2, lower, 8);
            }
        }
    }
}

static void check_agreement(const Warpgroup &g, uint32_t number, const Wgmma &op)
{
    for (int t = 1; t < 128; t++) {
        const Fiber *f = g.fiber[t];
        const Wgmma &other = f->wgmmas[number - f->wgmmas_base];
        if (other.n != op.n || other.b != op.b || (!op.is_a_regs && other.a != op.a) || other.is_added != op.is_added ||
            other.is_a_regs != op.is_a_regs || other.is_b_mn_major != op.is_b_mn_major)
            fail(op.where, "wgmma operands of thread 0 and thread %d of the warpgroup differ (the latter at line %d)",
                 t, other.where.line);
    }
}

// Performs wgmmas [from, to); those that chain on the same accumulators keep them in c.
static void perform(Warpgroup &g, uint32_t from, uint32_t to)
{
    static thread_local float a[K * M], b[K * N_MAX], c[M * N_MAX];
    const Fiber *first = g.fiber[0];
    const Block &block = *first->block;

    for (uint32_t i = from; i < to;) {
        const Wgmma head = first->wgmmas[i - first->wgmmas_base];
        const int n = head.n;
        if (head.is_added)
            move_accumulators(g, i, n, c, true);
        else
            memset(c, 0, sizeof(float) * M * static_cast<size_t>(n));
        uint32_t j = i;
        for (; j < to; j++) {
            const Wgmma &op = first->wgmmas[j - first->wgmmas_base];
            if (op.acc != head.acc || op.n != n || (j > i && !op.is_added))
                break;
            check_agreement(g, j, op);
            if (op.is_a_regs)
                load_a_registers(g, j, a);
            else
                load_operand(operand_a(op, block), a);
            load_operand(operand_b(op, block), b);
            product_64(c, a, b, n);
            gang->counters.wgmma_flops += 2ull * M * K * static_cast<uint64_t>(n);
        }
        move_accumulators(g, i, n, c, false);
        i = j;
    }
    for (Fiber *f : g.fiber) {
        f->wgmmas.erase(f->wgmmas.begin(), f->wgmmas.begin() + (to - f->wgmmas_base));
        f->wgmmas_base = to;
    }
}

// ---------------------------------------------------------------- the instructions

static void need_warpgroup(Loc w)
{
    const Fiber *f = current;

    if (f->index / 128 * 128 + 128 > f->block->n_threads)
        fail(w, "wgmma needs a warpgroup of 128 threads");
}

void wgmma_fence(Loc w)
{
    need_warpgroup(w);
    current->is_wgmma_fenced = true;
}

void wgmma_issue(const Wgmma &op)
{
    need_warpgroup(op.where);
    if (!current->is_wgmma_fenced)
        fail(op.where, "wgmma without wgmma_fence() since the start or the last wgmma_wait()");
    check_operands(current, op);
    current->wgmmas.push_back(op);
    if (op.is_a_regs)
        current->held_registers.push_back(
            {op.a_from, {op.a_regs[0], op.a_regs[1], op.a_regs[2], op.a_regs[3]}, current->wgmma_groups, op.where});
}

void wgmma_commit(Loc w)
{
    Fiber *f = current;
    Warpgroup &g = *f->group;
    const uint32_t end = f->wgmmas_base + static_cast<uint32_t>(f->wgmmas.size()), index = f->wgmma_groups++;

    need_warpgroup(w);
    if (g.group_lanes.size() <= index) {
        g.group_lanes.resize(index + 1);
        g.group_end.resize(index + 1);
    }
    if (g.group_lanes[index] && g.group_end[index] != end)
        fail(w, "threads of the warpgroup committed different numbers of wgmmas");
    g.group_end[index] = end;
    if (++g.group_lanes[index] < 128)
        return;
    wake_all(g.waiters);
    if (config.async == ASYNC_EARLY || (config.async == ASYNC_RANDOM && random_bits() % 2)) {
        perform(g, f->wgmmas_base, end);
        g.done_groups = index + 1;
    }
}

// The tensor core may read registers of A until their group is waited for; what they held is compared at each wait
// until then.
static void check_held_registers(Fiber *f, Loc w)
{
    for (const HeldRegisters &held : f->held_registers)
        if (memcmp(held.at, held.value, sizeof held.value) != 0)
            fail(held.where, "registers of A were changed before this wgmma was waited for (wait at line %d)", w.line);
}

void wgmma_wait(int keep, Loc w)
{
    Fiber *f = current;
    Warpgroup &g = *f->group;

    f->is_wgmma_fenced = false;
    if (f->wgmma_groups <= static_cast<uint32_t>(keep))
        return;
    const uint32_t need = f->wgmma_groups - static_cast<uint32_t>(keep);
    check_held_registers(f, w);
    auto &held = f->held_registers;
    held.erase(std::remove_if(held.begin(), held.end(), [&](const HeldRegisters &h) { return h.group < need; }),
               held.end());
    while (g.done_groups < need) {
        if (g.group_lanes[need - 1] < 128) {
            g.waiters.push(f);
            park("wgmma wait (other threads of the warpgroup have not committed)", nullptr, w);
            continue;
        }
        perform(g, f->wgmmas_base, g.group_end[need - 1]);
        g.done_groups = need;
    }
    check_wgmma_wait(f, need);
}

void check_wgmma_at_exit(Fiber *f)
{
    if (!f->wgmmas.empty())
        fail(f->wgmmas[0].where, "thread exits with a wgmma in flight (no wgmma_wait)");
}

} // namespace simt
