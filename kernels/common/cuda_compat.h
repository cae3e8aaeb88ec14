// The one include of CUDA itself: its headers under nvcc, the emulation's stand-ins for what nvcc builds in otherwise.
//
// A kernel file is plain C++17 that both compilers take: no <<<>>>, no asm outside prim_device.h, dynamic shared memory
// through dyn_smem(), __shared__ for static shared memory. The emulation (tests/emulator) puts its include folder on
// the path; nothing here knows where it lives.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#ifdef __CUDACC__
#define HRK_EMULATED 0
#else
#define HRK_EMULATED 1
#include <simt/host.h>
#endif

#if !HRK_EMULATED
// The dynamic shared memory of the block, 1024-byte aligned (what 128-byte swizzles need).
__device__ __forceinline__ unsigned char *dyn_smem()
{
    extern __shared__ __align__(1024) unsigned char hrk_dyn_smem[];
    return hrk_dyn_smem;
}
#endif
