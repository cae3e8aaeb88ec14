// Every instruction beyond plain CUDA C++ that the kernels use, one function each: the seam of the emulation.
//
// prim_device.h writes them as inline PTX for nvcc; the emulation's <simt/prim_host.h> has the same functions, with the
// same signatures, on the host. A kernel that needs a new instruction adds it to both halves and to the tests of
// tests/emulator. Names follow PTX. All are in namespace prim.
//
// clang-format off
//   mbarrier       mbar_init(b, count)  fence_mbar_init()  mbar_arrive(b)  mbar_arrive_expect_tx(b, bytes)
//                  mbar_try_wait(b, parity) -> bool  mbar_wait(b, parity)
//                  mbar_arrive_cp_async(b): noinc arrival when this thread's earlier cp.async have landed; counts as one of
//                  the barrier's expected arrivals
//                  mbar_arrive_cluster(b, cta)
//   bulk copies    bulk_load(smem, global, bytes, b [, policy])  bulk_store(global, smem, bytes)  bulk_commit()
//                  bulk_wait_read<N>()  bulk_wait<N>()  bulk_prefetch_l2(global, bytes)
//                  policy_evict_first() policy_evict_last() -> uint64_t
//   tensor copies  tma_load_2d(smem, map, b, c0, c1)  tma_load_3d(...)  tma_store_2d(map, smem, c0, c1)  prefetch_tensormap(map)
//   cp.async       cp_async16(smem, global, pred = true): false writes zeros  cp_async_commit()  cp_async_wait<N>()
//   matrices       ldmatrix_x4(r, p)  ldmatrix_x4_trans(r, p)  stmatrix_x4(p, r)  stmatrix_x4_trans(p, r)
//                  mma_bf16_16816(d, a, b): d += a b, fp32
//   wgmma          wgmma_fence()  wgmma_commit()  wgmma_wait<N>()  wgmma_wait<N>(acc)  wgmma_wait<N>(a_regs)
//                  wgmma_bf16<N>(acc, desc_a, desc_b, scale_d): m64nNk16, both operands K-major in shared memory; acc[N / 2]
//                  wgmma_bf16_ra<N>(acc, a_regs, desc_b, scale_d): A from registers
//                  wgmma_bf16_tb<N>(acc, a_regs, desc_b, scale_d): A from registers, B MN-major (V of attention)
//                  N of 8, 16, 24, 32, 48, 64, 96, 128, 192, 256
//                  desc_128b(smem): descriptor of a K-major 128-byte-swizzled tile (8-row groups 1024 bytes apart);
//                  +2 advances it 16 bf16 along K
//                  desc_128b_mn(smem): the same for an MN-major 64-wide tile; +128 advances it 16 along K
//   barriers       bar_sync(id, threads)  bar_arrive(id, threads)  elect_one() -> bool  fence_proxy_async()
//   registers      reg_inc<N>()  reg_dec<N>()
//   dependence     griddep_wait()  griddep_launch()
//   clusters       cluster_rank()  cluster_arrive()  cluster_wait()  cluster_map(p, cta)
//   memory order   atomic_add_acq_rel(p, v) -> old  ld_acquire(p)  st_release(p, v)
//   loads          ld_stream16(p) -> uint4: 16 bytes of global memory read once, past the first-level cache
//   warp           warp_sum(x)  warp_max(x): xor butterfly 16, 8, 4, 2, 1 over a full warp (one collective under emulation)
//   arithmetic     ex2(x): 2^x within 2 ulp, denormal arguments and results as 0
//   clock          global_timer() -> uint64_t, nanoseconds
//   smem_addr(p)   32-bit shared address
// clang-format on
#pragma once

#include "common/cuda_compat.h"

#if HRK_EMULATED
#include <simt/prim_host.h>
#else
#include "common/prim_device.h"
#endif
