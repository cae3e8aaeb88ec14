// mbarriers: arrivals, expected bytes, phases.
//
// The state lies beside the barrier, not in it; the 8 bytes in shared memory hold a word that tells whether something
// wrote over them.
#include "check.h"

namespace simt
{

constexpr int64_t BYTES_MAX = (1 << 20) - 1; // of a phase, as the hardware counts them

Mbar *find_mbar(const uint64_t *b)
{
    for (Mbar &m : gang->mbars)
        if (m.at == b)
            return &m;
    return nullptr;
}

static Mbar &get_mbar(uint64_t *b, Loc w)
{
    Mbar *m = find_mbar(b);

    if (!m)
        fail(w, "mbarrier at shared 0x%x was never initialised", smem_addr(b));
    if (*b != m->word())
        fail(w, "mbarrier at shared 0x%x was overwritten (initialised at %s:%d)", smem_addr(b), m->where.file,
             m->where.line);
    return *m;
}

void mbar_init(uint64_t *b, uint32_t count, Loc w)
{
    Mbar *m = find_mbar(b);

    if (reinterpret_cast<uintptr_t>(b) & 7)
        fail(w, "mbarrier is not 8-byte aligned");
    if (!count || count >= 1u << 20)
        fail(w, "mbarrier count %u is not in 1 .. 2^20 - 1", count);
    check_access(b, sizeof *b, WRITE, w, nullptr);
    if (!m) {
        gang->mbars.emplace_back();
        m = &gang->mbars.back();
    }
    const uint32_t n_copies = m->n_copies; // of an earlier life of these bytes
    *m = Mbar();
    m->at = b;
    m->n_copies = n_copies;
    m->count = m->pending = count;
    m->where = w;
    *b = m->word();
    check_mbar_init(*m);
}

static void finish_phase(Mbar &m)
{
    if (m.pending == 0 && m.bytes == 0) {
        m.phase++;
        m.pending = m.count;
        if (is_checking()) {
            check_join(m.done, m.next);
            m.next.assign(m.next.size(), 0);
        }
        *m.at = m.word();
        wake_all(m.waiters);
    } else {
        *m.at = m.word();
    }
}

static void take_arrival(Mbar &m, Loc w)
{
    if (m.pending == 0)
        fail(w, "mbarrier at shared 0x%x: more arrivals in this phase than its count %u", smem_addr(m.at), m.count);
    m.pending--;
}

void mbar_arrive(uint64_t *b, uint32_t expect_bytes, Loc w)
{
    Mbar &m = get_mbar(b, w);

    take_arrival(m, w);
    check_mbar_use(m, w);
    m.bytes += expect_bytes;
    if (m.bytes > BYTES_MAX)
        fail(w, "mbarrier at shared 0x%x expects %lld bytes, more than 2^20 - 1", smem_addr(b),
             static_cast<long long>(m.bytes));
    check_release(current, m.next);
    finish_phase(m);
}

void mbar_arrive_op(uint64_t *b, const AsyncOp &op)
{
    Mbar &m = get_mbar(b, op.where);

    take_arrival(m, op.where);
    if (is_checking())
        check_join(m.next, op.clock);
    finish_phase(m);
}

void mbar_complete(uint64_t *b, uint32_t bytes, const AsyncOp &op)
{
    Mbar &m = get_mbar(b, op.where);

    m.bytes -= bytes;
    if (m.bytes < -BYTES_MAX)
        fail(op.where, "mbarrier at shared 0x%x: bytes arrive that nobody expects", smem_addr(b));
    if (is_checking())
        check_join(m.next, op.clock);
    finish_phase(m);
}

bool mbar_test(uint64_t *b, uint32_t parity, bool block, Loc w)
{
    Mbar *m = &get_mbar(b, w);

    check_mbar_use(*m, w);
    if (!block && (m->phase & 1) == (parity & 1)) {
        yield();
        m = &get_mbar(b, w);
        if ((m->phase & 1) == (parity & 1))
            return false;
    }
    while ((m->phase & 1) == (parity & 1)) {
        m->waiters.push(current);
        park("mbarrier wait", b, w);
        m = &get_mbar(b, w);
    }
    check_acquire(current, m->done);
    return true;
}

} // namespace simt
