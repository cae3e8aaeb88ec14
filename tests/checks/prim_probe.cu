// Uses every function of common/prim.h once, so that a compiler says at once which half lacks one or spells it wrong.
// Compiled, never run: nvcc for each architecture, and a host compiler against the emulation.
#include "common/prim.h"

namespace
{

template <int N> __device__ void use_wgmma(float *out, unsigned char *smem, int steps)
{
    float acc[N / 2], acc_ra[N / 2], acc_tb[N / 2] = {};
    uint32_t a[4];
    uint64_t da = prim::desc_128b(smem), db = prim::desc_128b(smem + 8192), dv = prim::desc_128b_mn(smem + 16384);

    prim::ldmatrix_x4(a, smem + threadIdx.x % 32 * 16);
    for (int step = 0; step < steps; step++) {
        prim::wgmma_fence();
        for (int k = 0; k < 4; k++)
            prim::wgmma_bf16<N>(acc, da + 2 * k, db + 2 * k, step | k);
        prim::wgmma_commit();
        prim::wgmma_wait<0>(acc);
    }
    prim::wgmma_fence();
    prim::wgmma_bf16_ra<N>(acc_ra, a, db, 0);
    if constexpr (N <= 64)
        prim::wgmma_bf16_tb<N>(acc_tb, a, dv + 128, 0);
    prim::wgmma_commit();
    prim::wgmma_wait<0>(acc_ra);
    prim::wgmma_wait<0>(acc_tb);
    for (int i = 0; i < N / 2; i++)
        out[i * blockDim.x + threadIdx.x] = acc[i] + acc_ra[i] + acc_tb[i];
}

} // namespace

__global__ void __launch_bounds__(128) probe_wgmma(float *out, int width, int steps)
{
    unsigned char *smem = dyn_smem();

    switch (width) {
    case 8:
        return use_wgmma<8>(out, smem, steps);
    case 16:
        return use_wgmma<16>(out, smem, steps);
    case 24:
        return use_wgmma<24>(out, smem, steps);
    case 32:
        return use_wgmma<32>(out, smem, steps);
    case 48:
        return use_wgmma<48>(out, smem, steps);
    case 64:
        return use_wgmma<64>(out, smem, steps);
    case 96:
        return use_wgmma<96>(out, smem, steps);
    }
}

// 192 and 256 leave no room for three accumulators.
template <int N> __global__ void __launch_bounds__(128) probe_wide_wgmma(float *out, int steps)
{
    unsigned char *smem = dyn_smem();
    float acc[N / 2];
    uint32_t a[4];

    prim::ldmatrix_x4(a, smem + threadIdx.x % 32 * 16);
    for (int step = 0; step < steps; step++) {
        prim::wgmma_fence();
        prim::wgmma_bf16<N>(acc, prim::desc_128b(smem), prim::desc_128b(smem + 8192), step);
        prim::wgmma_bf16_ra<N>(acc, a, prim::desc_128b(smem + 8192), 1);
        prim::wgmma_commit();
        prim::wgmma_wait<0>(acc);
    }
    prim::wgmma_wait<0>();
    for (int i = 0; i < N / 2; i++)
        out[i * blockDim.x + threadIdx.x] = acc[i];
}
template __global__ void probe_wide_wgmma<128>(float *, int);
template __global__ void probe_wide_wgmma<192>(float *, int);
template __global__ void probe_wide_wgmma<256>(float *, int);

__global__ void __launch_bounds__(128)
    probe_copies(const __grid_constant__ CUtensorMap map, const unsigned char *in, unsigned char *out, uint32_t *words)
{
    unsigned char *smem = dyn_smem();
    uint64_t *full = reinterpret_cast<uint64_t *>(smem + 65536);

    if (threadIdx.x == 0) {
        prim::prefetch_tensormap(&map);
        prim::mbar_init(full, 129);
        prim::fence_mbar_init();
    }
    __syncthreads();
    prim::griddep_wait();
    if (threadIdx.x / 32 == 0 && prim::elect_one()) {
        prim::mbar_arrive_expect_tx(full, 4 * 1024);
        prim::bulk_load(smem, in, 1024, full);
        prim::bulk_load(smem + 1024, in, 1024, full, prim::policy_evict_first());
        prim::bulk_prefetch_l2(in + 4096, 1024);
        prim::tma_load_2d(smem + 2048, &map, full, 0, 0);
        prim::tma_load_3d(smem + 3072, &map, full, 0, 0, 0);
    }
    prim::cp_async16(smem + 4096 + threadIdx.x * 16, in + threadIdx.x * 16);
    prim::cp_async16(smem + 8192 + threadIdx.x * 16, in + threadIdx.x * 16, threadIdx.x < 7);
    prim::mbar_arrive_cp_async(full);
    prim::griddep_launch();
    if (!prim::mbar_try_wait(full, 0))
        prim::mbar_wait(full, 0);
    prim::cp_async_commit();
    prim::cp_async_wait<0>();
    prim::fence_proxy_async();
    prim::bar_sync(1, 128);
    if (threadIdx.x == 0) {
        prim::bulk_store(out, smem, 1024);
        prim::tma_store_2d(&map, smem, 0, 0);
        prim::bulk_commit();
        prim::bulk_wait_read<0>();
        prim::bulk_load(smem, in, 1024, full, prim::policy_evict_last());
        prim::bulk_wait<0>();
    }
    prim::mbar_arrive(full);
    if (threadIdx.x < 64)
        prim::bar_arrive(2, 128);
    else
        prim::bar_sync(2, 128);
    words[0] = prim::atomic_add_acq_rel(words + 1, 1) + prim::ld_acquire(words + 2) + prim::ld_stream16(in).x;
    prim::st_release(words + 3, static_cast<uint32_t>(prim::global_timer()) + prim::smem_addr(smem));
}

__global__ void __launch_bounds__(256, 1) probe_warp(float *out, unsigned steps)
{
    unsigned char *smem = dyn_smem();
    uint32_t a[4], b[4];
    float d[4] = {};

    if (threadIdx.x < 128)
        prim::reg_dec<40>();
    else
        prim::reg_inc<160>();
    for (unsigned step = 0; step < steps; step++) {
        prim::ldmatrix_x4(a, smem + threadIdx.x * 16);
        prim::ldmatrix_x4_trans(b, smem + threadIdx.x * 16);
        prim::mma_bf16_16816(d, a, reinterpret_cast<const uint32_t(&)[2]>(b));
    }
    prim::stmatrix_x4(smem + threadIdx.x * 16, a);
    prim::stmatrix_x4_trans(smem + threadIdx.x * 16, b);
    prim::cluster_arrive();
    prim::cluster_wait();
    prim::mbar_arrive_cluster(reinterpret_cast<uint64_t *>(smem + 65536), prim::cluster_rank() ^ 1);
    out[threadIdx.x] = prim::warp_sum(d[0]) + prim::warp_max(d[1]) +
                       prim::cluster_map(reinterpret_cast<float *>(smem), 0)[threadIdx.x];
}
