// The nvcc half of prim.h: each function is one PTX instruction, or the few that make one idea.
//
// The text compiles for every architecture from sm_80 on. An instruction that the architecture at hand lacks becomes a
// trap followed by "unreachable", so that a Hopper kernel shrinks to nothing in the code of older devices, where the
// host never launches it. Everything that touches memory clobbers "memory": the compiler may not move plain loads and
// stores across it, which is what the barriers mean.
#pragma once

#include <cuda.h>

#define HRK_PRIM __device__ __forceinline__
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define HRK_SM90 1 // mbarrier transactions, bulk copies, clusters, stmatrix, griddepcontrol
#else
#define HRK_SM90 0
#endif
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HRK_SM90A 1 // wgmma, setmaxnreg: of this very architecture only
#else
#define HRK_SM90A 0
#endif

namespace prim
{

HRK_PRIM void not_on_this_architecture()
{
    asm volatile("trap;");
    __builtin_unreachable();
}
#if HRK_SM90
#define HRK_ASM90(...) asm volatile(__VA_ARGS__)
#else
#define HRK_ASM90(...) not_on_this_architecture()
#endif
#if HRK_SM90A
#define HRK_ASM90A(...) asm volatile(__VA_ARGS__)
#else
#define HRK_ASM90A(...) not_on_this_architecture()
#endif

HRK_PRIM uint32_t smem_addr(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

// ---------------------------------------------------------------- mbarrier

HRK_PRIM void mbar_init(uint64_t *b, uint32_t count)
{
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(smem_addr(b)), "r"(count) : "memory");
}
HRK_PRIM void fence_mbar_init()
{
    HRK_ASM90("fence.mbarrier_init.release.cluster;" ::: "memory");
}
HRK_PRIM void mbar_arrive(uint64_t *b)
{
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(smem_addr(b)) : "memory");
}
HRK_PRIM void mbar_arrive_expect_tx(uint64_t *b, uint32_t bytes)
{
    HRK_ASM90("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}" ::"r"(smem_addr(b)),
              "r"(bytes)
              : "memory");
}
HRK_PRIM bool mbar_try_wait(uint64_t *b, uint32_t parity)
{
    uint32_t done = 0;

    HRK_ASM90("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
              : "=r"(done)
              : "r"(smem_addr(b)), "r"(parity)
              : "memory");
    return done != 0;
}
HRK_PRIM void mbar_wait(uint64_t *b, uint32_t parity)
{
    while (!mbar_try_wait(b, parity)) {
    }
}
HRK_PRIM void mbar_arrive_cp_async(uint64_t *b)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(smem_addr(b)) : "memory");
}
HRK_PRIM void mbar_arrive_cluster(uint64_t *b, uint32_t cta)
{
    HRK_ASM90("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
              "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n}" ::"r"(smem_addr(b)),
              "r"(cta)
              : "memory");
}

// ---------------------------------------------------------------- bulk copies

HRK_PRIM void bulk_load(void *smem, const void *global, uint32_t bytes, uint64_t *b)
{
    HRK_ASM90("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                  smem_addr(smem)),
              "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(smem_addr(b))
              : "memory");
}
HRK_PRIM void bulk_load(void *smem, const void *global, uint32_t bytes, uint64_t *b, uint64_t policy)
{
    HRK_ASM90("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
              "[%0], [%1], %2, [%3], %4;" ::"r"(smem_addr(smem)),
              "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(smem_addr(b)), "l"(policy)
              : "memory");
}
HRK_PRIM void bulk_store(void *global, const void *smem, uint32_t bytes)
{
    HRK_ASM90("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(global)),
              "r"(smem_addr(smem)), "r"(bytes)
              : "memory");
}
HRK_PRIM void bulk_commit()
{
    HRK_ASM90("cp.async.bulk.commit_group;" ::: "memory");
}
template <int N> HRK_PRIM void bulk_wait_read()
{
    HRK_ASM90("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
template <int N> HRK_PRIM void bulk_wait()
{
    HRK_ASM90("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}
HRK_PRIM void bulk_prefetch_l2(const void *global, uint32_t bytes)
{
    HRK_ASM90("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(global)), "r"(bytes)
              : "memory");
}
HRK_PRIM uint64_t policy_evict_first()
{
    uint64_t policy;

    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
HRK_PRIM uint64_t policy_evict_last()
{
    uint64_t policy;

    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// ---------------------------------------------------------------- tensor copies

HRK_PRIM void prefetch_tensormap(const CUtensorMap *map)
{
    HRK_ASM90("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
HRK_PRIM void tma_load_2d(void *smem, const CUtensorMap *map, uint64_t *b, int c0, int c1)
{
    HRK_ASM90("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
              "[%0], [%1, {%3, %4}], [%2];" ::"r"(smem_addr(smem)),
              "l"(map), "r"(smem_addr(b)), "r"(c0), "r"(c1)
              : "memory");
}
HRK_PRIM void tma_load_3d(void *smem, const CUtensorMap *map, uint64_t *b, int c0, int c1, int c2)
{
    HRK_ASM90("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
              "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(smem_addr(smem)),
              "l"(map), "r"(smem_addr(b)), "r"(c0), "r"(c1), "r"(c2)
              : "memory");
}
HRK_PRIM void tma_store_2d(const CUtensorMap *map, const void *smem, int c0, int c1)
{
    HRK_ASM90("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
              "r"(smem_addr(smem)), "r"(c0), "r"(c1)
              : "memory");
}

// ---------------------------------------------------------------- cp.async

HRK_PRIM void cp_async16(void *smem, const void *global, bool pred = true)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_addr(smem)),
                 "l"(__cvta_generic_to_global(global)), "r"(pred ? 16 : 0)
                 : "memory");
}
HRK_PRIM void cp_async_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N> HRK_PRIM void cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---------------------------------------------------------------- matrices of a warp

HRK_PRIM void ldmatrix_x4(uint32_t (&r)[4], const void *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_addr(p))
                 : "memory");
}
HRK_PRIM void ldmatrix_x4_trans(uint32_t (&r)[4], const void *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_addr(p))
                 : "memory");
}
HRK_PRIM void stmatrix_x4(void *p, const uint32_t (&r)[4])
{
    HRK_ASM90("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%4], {%0, %1, %2, %3};" ::"r"(r[0]), "r"(r[1]), "r"(r[2]),
              "r"(r[3]), "r"(smem_addr(p))
              : "memory");
}
HRK_PRIM void stmatrix_x4_trans(void *p, const uint32_t (&r)[4])
{
    HRK_ASM90("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%4], {%0, %1, %2, %3};" ::"r"(r[0]), "r"(r[1]),
              "r"(r[2]), "r"(r[3]), "r"(smem_addr(p))
              : "memory");
}
HRK_PRIM void mma_bf16_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---------------------------------------------------------------- wgmma

HRK_PRIM void wgmma_fence()
{
    HRK_ASM90A("wgmma.fence.sync.aligned;" ::: "memory");
}
HRK_PRIM void wgmma_commit()
{
    HRK_ASM90A("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N> HRK_PRIM void wgmma_wait()
{
    HRK_ASM90A("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// The accumulators pass through the wait: a read of them cannot be moved above it.
template <int N, int R> HRK_PRIM void wgmma_wait(float (&acc)[R])
{
    wgmma_wait<N>();
#pragma unroll
    for (int i = 0; i < R; i++)
        asm volatile("" : "+f"(acc[i])::"memory");
}
// Registers of A pass through the wait for the wgmma that read them: none of them gets another use before it.
template <int N> HRK_PRIM void wgmma_wait(uint32_t (&a)[4])
{
    wgmma_wait<N>();
#pragma unroll
    for (int i = 0; i < 4; i++)
        asm volatile("" : "+r"(a[i])::"memory");
}
// A K-major tile of 128-byte rows: 8-row groups 1024 bytes apart, 128-byte swizzle. The stride along K is not used.
HRK_PRIM uint64_t desc_128b(const void *smem)
{
    return (uint64_t)((smem_addr(smem) & 0x3ffff) >> 4) | 1ull << 16 | (uint64_t)(1024 >> 4) << 32 | 1ull << 62;
}
// An MN-major tile 64 wide: 8 steps of K lie in 1024 bytes, the next 8 follow.
HRK_PRIM uint64_t desc_128b_mn(const void *smem)
{
    return (uint64_t)((smem_addr(smem) & 0x3ffff) >> 4) | (uint64_t)(1024 >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 |
           1ull << 62;
}
#if HRK_SM90A
template <int N> HRK_PRIM void wgmma_bf16(float (&acc)[N / 2], uint64_t desc_a, uint64_t desc_b, int scale_d);
template <int N> HRK_PRIM void wgmma_bf16_ra(float (&acc)[N / 2], const uint32_t (&a)[4], uint64_t desc_b, int scale_d);
template <int N> HRK_PRIM void wgmma_bf16_tb(float (&acc)[N / 2], const uint32_t (&a)[4], uint64_t desc_b, int scale_d);
#include "common/wgmma_device.inc"
#else
template <int N> HRK_PRIM void wgmma_bf16(float (&)[N / 2], uint64_t, uint64_t, int)
{
    not_on_this_architecture();
}
template <int N> HRK_PRIM void wgmma_bf16_ra(float (&)[N / 2], const uint32_t (&)[4], uint64_t, int)
{
    not_on_this_architecture();
}
template <int N> HRK_PRIM void wgmma_bf16_tb(float (&)[N / 2], const uint32_t (&)[4], uint64_t, int)
{
    not_on_this_architecture();
}
#endif

// ---------------------------------------------------------------- barriers, registers, dependence

HRK_PRIM void bar_sync(int id, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
HRK_PRIM void bar_arrive(int id, int threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
HRK_PRIM bool elect_one()
{
    uint32_t elected;
#if HRK_SM90
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(elected));
    return elected != 0;
#else
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(elected));
    return elected == 0;
#endif
}
HRK_PRIM void fence_proxy_async()
{
    HRK_ASM90("fence.proxy.async.shared::cta;" ::: "memory");
}
// HRK_NO_SETMAXNREG: to see how many registers the code takes by itself (tests/tools/kernel_budget.py).
template <int N> HRK_PRIM void reg_inc()
{
#ifndef HRK_NO_SETMAXNREG
    HRK_ASM90A("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}
template <int N> HRK_PRIM void reg_dec()
{
#ifndef HRK_NO_SETMAXNREG
    HRK_ASM90A("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}
// Devices before sm_90 have no programmatic launches: every kernel starts after the one before it has ended.
HRK_PRIM void griddep_wait()
{
#if HRK_SM90
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
HRK_PRIM void griddep_launch()
{
#if HRK_SM90
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---------------------------------------------------------------- clusters

HRK_PRIM uint32_t cluster_rank()
{
    uint32_t rank = 0;
#if HRK_SM90
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return rank;
}
HRK_PRIM void cluster_arrive()
{
    HRK_ASM90("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
HRK_PRIM void cluster_wait()
{
    HRK_ASM90("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
template <class T> HRK_PRIM T *cluster_map(T *p, uint32_t cta)
{
    uint64_t there = 0;

    HRK_ASM90("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(p), "r"(cta));
    return reinterpret_cast<T *>(there);
}

// ---------------------------------------------------------------- memory order, loads

HRK_PRIM uint32_t atomic_add_acq_rel(uint32_t *p, uint32_t v)
{
    uint32_t old;

    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
                 : "=r"(old)
                 : "l"(__cvta_generic_to_global(p)), "r"(v)
                 : "memory");
    return old;
}
HRK_PRIM uint32_t ld_acquire(const uint32_t *p)
{
    uint32_t v;

    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(__cvta_generic_to_global(p)) : "memory");
    return v;
}
HRK_PRIM void st_release(uint32_t *p, uint32_t v)
{
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(v) : "memory");
}
// Coherent on purpose (no .nc): with programmatic launches the kernel before may have written it while this one ran.
HRK_PRIM uint4 ld_stream16(const void *p)
{
    uint4 v;

    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(__cvta_generic_to_global(p))
                 : "memory");
    return v;
}

// ---------------------------------------------------------------- warp, arithmetic, clock

HRK_PRIM float warp_sum(float x)
{
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, lanes);
    return x;
}
HRK_PRIM float warp_max(float x)
{
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
    return x;
}
HRK_PRIM float ex2(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
HRK_PRIM uint64_t global_timer()
{
    uint64_t ns;

    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns)::"memory");
    return ns;
}

} // namespace prim

#undef HRK_ASM90A
#undef HRK_ASM90
#undef HRK_SM90A
#undef HRK_SM90
#undef HRK_PRIM
