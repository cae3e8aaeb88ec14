// Warp collectives: lanes that name the same mask meet; the last one performs the operation for all.
//
// A shuffle costs 32 switches whatever it moves, so a whole butterfly (warp_sum, reduce) is one collective.
#include "check.h"

#include <math.h>

namespace simt
{

uint32_t lane_id()
{
    return current->lane;
}

uint32_t active_warp_mask()
{
    return current->warp->live;
}

static Collective &find_open(Warp &warp, CollectiveKind kind, uint32_t mask, CollectiveBody body)
{
    for (Collective &c : warp.open)
        if (c.kind == kind && c.mask == mask && !(c.arrived >> current->lane & 1))
            return c;
    warp.open.emplace_back();
    Collective &c = warp.open.back();
    c.kind = kind;
    c.mask = mask;
    c.arrived = 0;
    c.body = body;
    return c;
}

void check_collectives_at_exit(const Fiber *f)
{
    for (const Collective &c : f->warp->open)
        if (c.mask >> f->lane & 1)
            fail(c.fiber[__builtin_ctz(c.arrived)]->where, "warp collective: lanes %08x of the mask have exited",
                 c.mask & ~(f->warp->live & ~(1u << f->lane)));
}

// Only __syncwarp orders memory.
static void join_clocks(const Collective &c)
{
    Clock joined;

    for (uint32_t m = c.mask; m; m &= m - 1)
        check_release(c.fiber[__builtin_ctz(m)], joined);
    for (uint32_t m = c.mask; m; m &= m - 1)
        check_acquire(c.fiber[__builtin_ctz(m)], joined);
}

void warp_collective(CollectiveKind kind, uint32_t mask, void *payload, CollectiveBody body, Loc w)
{
    Fiber *f = current;
    Warp &warp = *f->warp;

    mask &= warp.lanes;
    if (!(mask >> f->lane & 1))
        fail(w, "warp collective: the calling lane %u is not in its mask %08x", f->lane, mask);
    if (mask & ~warp.live)
        fail(w, "warp collective: lanes %08x of the mask have exited", mask & ~warp.live);
    Collective &c = find_open(warp, kind, mask, body);
    c.slot[f->lane] = payload;
    c.fiber[f->lane] = f;
    c.arrived |= 1u << f->lane;
    if (c.arrived != mask) {
        park("warp collective", nullptr, w);
        return;
    }
    gang->counters.collectives++;
    if (c.body)
        c.body(c.slot, mask, w);
    if (kind == SYNCWARP && is_checking())
        join_clocks(c);
    for (uint32_t m = mask & ~(1u << f->lane); m; m &= m - 1)
        wake(c.fiber[__builtin_ctz(m)]);
    gang->spins = 0;
    if (&c != &warp.open.back())
        c = warp.open.back();
    warp.open.pop_back();
    if (config.seed)
        yield();
}

// ---------------------------------------------------------------- bodies

template <class T> static T &request(void **slot, uint32_t mask_rest)
{
    return *static_cast<T *>(slot[__builtin_ctz(mask_rest)]);
}

void shuffle_body(void **slot, uint32_t mask, Loc)
{
    constexpr uint64_t UNDEFINED = 0xdeadbeefdeadbeefull; // from a lane outside the mask

    for (uint32_t m = mask; m; m &= m - 1) {
        ShuffleRequest &r = request<ShuffleRequest>(slot, m);
        r.result = mask >> (r.source & 31) & 1 ? static_cast<ShuffleRequest *>(slot[r.source & 31])->value : UNDEFINED;
    }
}

namespace
{
struct BallotRequest {
    bool predicate;
    uint32_t result;
};
struct MatchRequest {
    uint64_t value;
    uint32_t result;
};
struct ReduceRequest {
    uint32_t value;
    ReduceOp op;
};
} // namespace

uint32_t ballot(uint32_t mask, bool predicate, Loc w)
{
    BallotRequest r{predicate, 0};

    warp_collective(
        BALLOT, mask, &r,
        [](void **slot, uint32_t all, Loc) {
            uint32_t bits = 0;
            for (uint32_t m = all; m; m &= m - 1)
                bits |= static_cast<uint32_t>(request<BallotRequest>(slot, m).predicate) << __builtin_ctz(m);
            for (uint32_t m = all; m; m &= m - 1)
                request<BallotRequest>(slot, m).result = bits;
        },
        w);
    return r.result;
}

uint32_t match_any(uint32_t mask, uint64_t value, Loc w)
{
    MatchRequest r{value, 0};

    warp_collective(
        MATCH, mask, &r,
        [](void **slot, uint32_t all, Loc) {
            for (uint32_t m = all; m; m &= m - 1) {
                MatchRequest &mine = request<MatchRequest>(slot, m);
                mine.result = 0;
                for (uint32_t n = all; n; n &= n - 1)
                    if (request<MatchRequest>(slot, n).value == mine.value)
                        mine.result |= 1u << __builtin_ctz(n);
            }
        },
        w);
    return r.result;
}

static uint32_t combine(ReduceOp op, uint32_t a, uint32_t b)
{
    switch (op) {
    case REDUCE_ADD:
        return a + b;
    case REDUCE_MIN:
        return std::min(a, b);
    case REDUCE_MAX:
        return std::max(a, b);
    case REDUCE_MIN_S:
        return static_cast<uint32_t>(std::min(static_cast<int32_t>(a), static_cast<int32_t>(b)));
    case REDUCE_MAX_S:
        return static_cast<uint32_t>(std::max(static_cast<int32_t>(a), static_cast<int32_t>(b)));
    case REDUCE_AND:
        return a & b;
    case REDUCE_OR:
        return a | b;
    default:
        return a ^ b;
    }
}

uint32_t reduce(uint32_t mask, uint32_t value, ReduceOp op, Loc w)
{
    ReduceRequest r{value, op};

    warp_collective(
        REDUCE, mask, &r,
        [](void **slot, uint32_t all, Loc where) {
            const ReduceRequest first = request<ReduceRequest>(slot, all);
            uint32_t total = first.value;
            for (uint32_t m = all & (all - 1); m; m &= m - 1) {
                if (request<ReduceRequest>(slot, m).op != first.op)
                    fail(where, "lanes of one warp reduce with different operations");
                total = combine(first.op, total, request<ReduceRequest>(slot, m).value);
            }
            for (uint32_t m = all; m; m &= m - 1)
                request<ReduceRequest>(slot, m).value = total;
        },
        w);
    return r.value;
}

// The sum that the butterfly 16, 8, 4, 2, 1 makes, to the bit.
template <class F> static void butterfly(void **slot, F f)
{
    float x[32], y[32];

    for (int i = 0; i < 32; i++)
        x[i] = *static_cast<float *>(slot[i]);
    for (int bits = 16; bits; bits /= 2) {
        for (int i = 0; i < 32; i++)
            y[i] = f(x[i], x[i ^ bits]);
        std::copy(y, y + 32, x);
    }
    for (int i = 0; i < 32; i++)
        *static_cast<float *>(slot[i]) = x[i];
}

static void need_full_warp(Loc w)
{
    if (current->warp->lanes != ~0u)
        fail(w, "a reduction over a full warp, called by a warp with lanes %08x", current->warp->lanes);
}

float warp_sum(float x, Loc w)
{
    need_full_warp(w);
    warp_collective(
        WARP_SUM, ~0u, &x, [](void **slot, uint32_t, Loc) { butterfly(slot, [](float a, float b) { return a + b; }); },
        w);
    return x;
}

float warp_max(float x, Loc w)
{
    need_full_warp(w);
    warp_collective(
        WARP_MAX, ~0u, &x,
        [](void **slot, uint32_t, Loc) { butterfly(slot, [](float a, float b) { return fmaxf(a, b); }); }, w);
    return x;
}

bool elect_one(Loc w)
{
    warp_collective(ELECT, ~0u, nullptr, nullptr, w);
    return current->lane == static_cast<uint32_t>(__builtin_ctz(current->warp->lanes));
}

void set_max_registers(int n, Loc w)
{
    if (n < 24 || n > 256 || n % 8)
        fail(w, "setmaxnreg %d: not a multiple of 8 in 24 .. 256", n);
    warp_collective(SETMAXNREG, ~0u, nullptr, nullptr, w);
}

void griddep_wait(Loc)
{
    current->block->has_waited = true;
    check_griddep_wait(current);
}

void griddep_launch(Loc)
{
    Block &b = *current->block;

    if (!b.has_waited)
        b.launched_before_wait = true;
}

} // namespace simt
