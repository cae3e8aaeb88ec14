// The host half of kernels/common/prim.h: the same functions on the emulation.
#pragma once

#include <cuda.h>
#include "simt/host.h"

namespace simt
{

uint32_t smem_addr(const void *p);

void mbar_init(uint64_t *b, uint32_t count, Loc w);
void mbar_arrive(uint64_t *b, uint32_t expect_bytes, Loc w);
void mbar_arrive_cp_async(uint64_t *b, Loc w);
bool mbar_test(uint64_t *b, uint32_t parity, bool block, Loc w);

void bulk_load(void *smem, const void *global, uint32_t bytes, uint64_t *b, Loc w);
void bulk_store(void *global, const void *smem, uint32_t bytes, Loc w);
void bulk_commit();
void bulk_wait(int keep, bool is_read_only);
void bulk_prefetch(const void *global, uint32_t bytes, Loc w);
void tma_load(void *smem, const CUtensorMap *map, uint64_t *b, const int *at, int rank, Loc w);
void tma_store(const CUtensorMap *map, const void *smem, const int *at, int rank, Loc w);
void cp_async16(void *smem, const void *global, bool pred, Loc w);
void cp_async_commit();
void cp_async_wait(int keep);
void fence_proxy_async();

struct MatrixRequest {
    const void *p; // the row of shared memory that this lane names
    uint32_t *r;
    bool is_transposed;
};
void ldmatrix_body(void **slot, uint32_t mask, Loc w);
void stmatrix_body(void **slot, uint32_t mask, Loc w);
struct MmaRequest {
    float *d;
    const uint32_t *a, *b;
};
void mma_body(void **slot, uint32_t mask, Loc w);

struct Wgmma {
    float *acc;
    uint64_t a, b; // descriptors; a is not used with is_a_regs
    uint32_t a_regs[4];
    const uint32_t *a_from; // where a_regs lie; null without is_a_regs
    uint16_t n;
    bool is_a_regs, is_b_mn_major, is_added; // is_added: to what the accumulators hold
    Loc where;
};
void wgmma_fence(Loc w);
void wgmma_issue(const Wgmma &op);
void wgmma_commit(Loc w);
void wgmma_wait(int keep, Loc w);
uint64_t wgmma_descriptor(const void *smem, uint32_t leading_bytes, Loc w);
constexpr bool is_wgmma_n(int n)
{
    return n == 8 || n == 16 || n == 24 || n == 32 || n == 48 || n == 64 || n == 96 || n == 128 || n == 192 || n == 256;
}

float warp_sum(float x, Loc w);
float warp_max(float x, Loc w);
bool elect_one(Loc w);
void set_max_registers(int n, Loc w);
void griddep_wait(Loc w);
void griddep_launch(Loc w);
uint32_t cluster_rank();
void cluster_arrive(Loc w);
void cluster_wait(Loc w);
void *cluster_map(const void *p, uint32_t cta, Loc w);

} // namespace simt

namespace prim
{

inline uint32_t smem_addr(const void *p)
{
    return simt::smem_addr(p);
}

// ---------------------------------------------------------------- mbarrier

inline void mbar_init(uint64_t *b, uint32_t count, SIMT_HERE)
{
    simt::mbar_init(b, count, w);
}
inline void fence_mbar_init()
{
}
inline void mbar_arrive(uint64_t *b, SIMT_HERE)
{
    simt::mbar_arrive(b, 0, w);
}
inline void mbar_arrive_expect_tx(uint64_t *b, uint32_t bytes, SIMT_HERE)
{
    simt::mbar_arrive(b, bytes, w);
}
inline bool mbar_try_wait(uint64_t *b, uint32_t parity, SIMT_HERE)
{
    return simt::mbar_test(b, parity, false, w);
}
inline void mbar_wait(uint64_t *b, uint32_t parity, SIMT_HERE)
{
    simt::mbar_test(b, parity, true, w);
}
inline void mbar_arrive_cp_async(uint64_t *b, SIMT_HERE)
{
    simt::mbar_arrive_cp_async(b, w);
}
inline void mbar_arrive_cluster(uint64_t *b, uint32_t cta, SIMT_HERE)
{
    simt::mbar_arrive(static_cast<uint64_t *>(simt::cluster_map(b, cta, w)), 0, w);
}

// ---------------------------------------------------------------- copies

inline void bulk_load(void *smem, const void *global, uint32_t bytes, uint64_t *b, SIMT_HERE)
{
    simt::bulk_load(smem, global, bytes, b, w);
}
inline void bulk_load(void *smem, const void *global, uint32_t bytes, uint64_t *b, uint64_t, SIMT_HERE)
{
    simt::bulk_load(smem, global, bytes, b, w);
}
inline void bulk_store(void *global, const void *smem, uint32_t bytes, SIMT_HERE)
{
    simt::bulk_store(global, smem, bytes, w);
}
inline void bulk_commit()
{
    simt::bulk_commit();
}
template <int N> inline void bulk_wait_read()
{
    simt::bulk_wait(N, true);
}
template <int N> inline void bulk_wait()
{
    simt::bulk_wait(N, false);
}
inline void bulk_prefetch_l2(const void *global, uint32_t bytes, SIMT_HERE)
{
    simt::bulk_prefetch(global, bytes, w);
}
inline uint64_t policy_evict_first()
{
    return 1;
}
inline uint64_t policy_evict_last()
{
    return 2;
}
inline void prefetch_tensormap(const CUtensorMap *)
{
}
inline void tma_load_2d(void *smem, const CUtensorMap *map, uint64_t *b, int c0, int c1, SIMT_HERE)
{
    const int at[] = {c0, c1};
    simt::tma_load(smem, map, b, at, 2, w);
}
inline void tma_load_3d(void *smem, const CUtensorMap *map, uint64_t *b, int c0, int c1, int c2, SIMT_HERE)
{
    const int at[] = {c0, c1, c2};
    simt::tma_load(smem, map, b, at, 3, w);
}
inline void tma_store_2d(const CUtensorMap *map, const void *smem, int c0, int c1, SIMT_HERE)
{
    const int at[] = {c0, c1};
    simt::tma_store(map, smem, at, 2, w);
}
inline void cp_async16(void *smem, const void *global, bool pred = true, SIMT_HERE)
{
    simt::cp_async16(smem, global, pred, w);
}
inline void cp_async_commit()
{
    simt::cp_async_commit();
}
template <int N> inline void cp_async_wait()
{
    simt::cp_async_wait(N);
}

// ---------------------------------------------------------------- matrices of a warp

inline void ldmatrix_x4(uint32_t (&r)[4], const void *p, SIMT_HERE)
{
    simt::MatrixRequest q{p, r, false};
    simt::warp_collective(simt::LDMATRIX, ~0u, &q, simt::ldmatrix_body, w);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void *p, SIMT_HERE)
{
    simt::MatrixRequest q{p, r, true};
    simt::warp_collective(simt::LDMATRIX, ~0u, &q, simt::ldmatrix_body, w);
}
inline void stmatrix_x4(void *p, const uint32_t (&r)[4], SIMT_HERE)
{
    uint32_t values[4] = {r[0], r[1], r[2], r[3]};
    simt::MatrixRequest q{p, values, false};
    simt::warp_collective(simt::STMATRIX, ~0u, &q, simt::stmatrix_body, w);
}
inline void stmatrix_x4_trans(void *p, const uint32_t (&r)[4], SIMT_HERE)
{
    uint32_t values[4] = {r[0], r[1], r[2], r[3]};
    simt::MatrixRequest q{p, values, true};
    simt::warp_collective(simt::STMATRIX, ~0u, &q, simt::stmatrix_body, w);
}
inline void mma_bf16_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIMT_HERE)
{
    simt::MmaRequest q{d, a, b};
    simt::warp_collective(simt::MMA, ~0u, &q, simt::mma_body, w);
}

// ---------------------------------------------------------------- wgmma

inline void wgmma_fence(SIMT_HERE)
{
    simt::wgmma_fence(w);
}
inline void wgmma_commit(SIMT_HERE)
{
    simt::wgmma_commit(w);
}
template <int N> inline void wgmma_wait(SIMT_HERE)
{
    simt::wgmma_wait(N, w);
}
template <int N, int R> inline void wgmma_wait(float (&)[R], SIMT_HERE)
{
    simt::wgmma_wait(N, w);
}
template <int N> inline void wgmma_wait(uint32_t (&)[4], SIMT_HERE)
{
    simt::wgmma_wait(N, w);
}
inline uint64_t desc_128b(const void *smem, SIMT_HERE)
{
    return simt::wgmma_descriptor(smem, 16, w);
}
inline uint64_t desc_128b_mn(const void *smem, SIMT_HERE)
{
    return simt::wgmma_descriptor(smem, 1024, w);
}
template <int N> inline void wgmma_bf16(float (&acc)[N / 2], uint64_t desc_a, uint64_t desc_b, int scale_d, SIMT_HERE)
{
    static_assert(simt::is_wgmma_n(N), "prim.h lists the widths");
    simt::wgmma_issue({acc, desc_a, desc_b, {0, 0, 0, 0}, nullptr, N, false, false, scale_d != 0, w});
}
template <int N>
inline void wgmma_bf16_ra(float (&acc)[N / 2], const uint32_t (&a)[4], uint64_t desc_b, int scale_d, SIMT_HERE)
{
    static_assert(simt::is_wgmma_n(N), "prim.h lists the widths");
    simt::wgmma_issue({acc, 0, desc_b, {a[0], a[1], a[2], a[3]}, a, N, true, false, scale_d != 0, w});
}
template <int N>
inline void wgmma_bf16_tb(float (&acc)[N / 2], const uint32_t (&a)[4], uint64_t desc_b, int scale_d, SIMT_HERE)
{
    static_assert(simt::is_wgmma_n(N) && N <= 64, "an MN-major tile is 64 wide");
    simt::wgmma_issue({acc, 0, desc_b, {a[0], a[1], a[2], a[3]}, a, N, true, true, scale_d != 0, w});
}

// ---------------------------------------------------------------- barriers, registers, dependence, clusters

inline void bar_sync(int id, int threads, SIMT_HERE)
{
    simt::bar_sync(id, threads, w);
}
inline void bar_arrive(int id, int threads, SIMT_HERE)
{
    simt::bar_arrive(id, threads, w);
}
inline bool elect_one(SIMT_HERE)
{
    return simt::elect_one(w);
}
inline void fence_proxy_async()
{
    simt::fence_proxy_async();
}
template <int N> inline void reg_inc(SIMT_HERE)
{
    simt::set_max_registers(N, w);
}
template <int N> inline void reg_dec(SIMT_HERE)
{
    simt::set_max_registers(N, w);
}
inline void griddep_wait(SIMT_HERE)
{
    simt::griddep_wait(w);
}
inline void griddep_launch(SIMT_HERE)
{
    simt::griddep_launch(w);
}
inline uint32_t cluster_rank()
{
    return simt::cluster_rank();
}
inline void cluster_arrive(SIMT_HERE)
{
    simt::cluster_arrive(w);
}
inline void cluster_wait(SIMT_HERE)
{
    simt::cluster_wait(w);
}
template <class T> inline T *cluster_map(T *p, uint32_t cta, SIMT_HERE)
{
    return static_cast<T *>(simt::cluster_map(p, cta, w));
}

// ---------------------------------------------------------------- memory order, loads, warp, clock

inline uint32_t atomic_add_acq_rel(uint32_t *p, uint32_t v)
{
    return __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL);
}
inline uint32_t ld_acquire(const uint32_t *p)
{
    simt::yield();
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
inline void st_release(uint32_t *p, uint32_t v)
{
    __atomic_store_n(p, v, __ATOMIC_RELEASE);
}
inline uint4 ld_stream16(const void *p)
{
    return *static_cast<const uint4 *>(p);
}
inline float warp_sum(float x, SIMT_HERE)
{
    return simt::warp_sum(x, w);
}
inline float warp_max(float x, SIMT_HERE)
{
    return simt::warp_max(x, w);
}
inline float ex2(float x)
{
    float y = exp2f(x);

    return y < 1.17549435e-38f ? 0.0f : y;
}
inline uint64_t global_timer()
{
    return simt::clock_ns();
}

} // namespace prim
