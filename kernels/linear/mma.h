// One tile of a product with mma.sync: BM weight rows by BN tokens, all of the inner dimension.
//
// Weights lie on the instruction's 16-row side and tokens on its 8-column side, so a step of 8 tokens wastes half an
// instruction and no weight traffic. A stage is 64 columns: 128-byte rows of both operands, which cp.async leaves in
// 128-byte-swizzle order, so that neither its writes nor ldmatrix's reads meet in a bank. STAGES - 1 stages are on
// their way while one is multiplied. Every output is one chain of mma.m16n8k16, columns ascending, in one thread's
// register, whatever the tile's shape; so all shapes give the same bits.
#pragma once

#include "common/numeric.h"
#include "common/prim.h"
#include "hrk.h"

namespace hrk
{

enum { MMA_K = 64, MMA_CHUNKS = MMA_K / 8 };

// WM x WN outputs a warp.
template <int BM_, int BN_, int WM_, int WN_, int STAGES_> struct MmaShape {
    enum {
        BM = BM_,
        BN = BN_,
        WM = WM_,
        WN = WN_,
        STAGES = STAGES_,
        WARPS_M = BM / WM,
        WARPS = WARPS_M * (BN / WN),
        THREADS = 32 * WARPS,
        ROWS_AT_ONCE = THREADS / MMA_CHUNKS, // rows of a stage that the block copies in one go
        W_COPIES = BM / ROWS_AT_ONCE,        // of a thread
        T_COPIES = BN / ROWS_AT_ONCE,
        STAGE_BYTES = (BM + BN) * MMA_K * 2,
        SMEM = STAGES * STAGE_BYTES
    };
    static_assert(BM % ROWS_AT_ONCE == 0 && BN % ROWS_AT_ONCE == 0, "a stage is whole copies");
    static_assert(WM % 16 == 0 && WN % 16 == 0, "a warp has whole instructions");
};

// Where a thread's copies of one operand come from: its chunk of 16 bytes of COPIES rows. Rows that do not exist give
// zeros.
template <int COPIES> struct MmaSource {
    const hrk_bf16 *row[COPIES]; // readable in any case
    uint32_t present;            // bit i: row i exists
};

// acc[i][j]: weight rows 16 i .. 16 i + 15 of the warp, tokens 8 j .. 8 j + 7.
template <class S> struct MmaTile {
    float acc[S::WM / 16][S::WN / 8][4];
    unsigned char *smem;

    static __device__ __forceinline__ uint32_t copy_row(int i)
    {
        return threadIdx.x / MMA_CHUNKS + i * S::ROWS_AT_ONCE;
    }

    template <int COPIES>
    __device__ __forceinline__ void copy(unsigned char *to, const MmaSource<COPIES> &from, uint32_t k_block)
    {
        const uint32_t chunk = threadIdx.x % MMA_CHUNKS;
#pragma unroll
        for (int i = 0; i < COPIES; i++)
            prim::cp_async16(to + swizzle128(copy_row(i), chunk * 16),
                             from.row[i] + (size_t)k_block * MMA_K + chunk * 8, (from.present >> i & 1) != 0);
    }
    __device__ __forceinline__ unsigned char *stage(uint32_t k_block)
    {
        return smem + k_block % S::STAGES * S::STAGE_BYTES;
    }
    __device__ __forceinline__ void copy_weights(const MmaSource<S::W_COPIES> &from, uint32_t k_block)
    {
        copy(stage(k_block), from, k_block);
    }
    __device__ __forceinline__ void copy_tokens(const MmaSource<S::T_COPIES> &from, uint32_t k_block)
    {
        copy(stage(k_block) + S::BM * MMA_K * 2, from, k_block);
    }

    __device__ __forceinline__ void multiply(uint32_t k_block)
    {
        const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const unsigned char *weights = stage(k_block), *tokens = weights + S::BM * MMA_K * 2;
        const uint32_t m = warp % S::WARPS_M * S::WM, n = warp / S::WARPS_M * S::WN;
#pragma unroll
        for (int k = 0; k < MMA_K / 16; k++) {
            uint32_t a[S::WM / 16][4], b[S::WN / 16][4];
#pragma unroll
            for (int i = 0; i < S::WM / 16; i++)
                prim::ldmatrix_x4(a[i], weights + swizzle128(m + i * 16 + lane % 16, k * 32 + lane / 16 * 16));
#pragma unroll
            for (int j = 0; j < S::WN / 16; j++)
                prim::ldmatrix_x4(
                    b[j], tokens + swizzle128(n + j * 16 + lane / 16 * 8 + lane % 8, k * 32 + lane / 8 % 2 * 16));
#pragma unroll
            for (int j = 0; j < S::WN / 8; j++) {
                const uint32_t pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
#pragma unroll
                for (int i = 0; i < S::WM / 16; i++)
                    prim::mma_bf16_16816(acc[i][j], a[i], pair);
            }
        }
    }

    // The whole product. weights_ahead: the caller has copied the first STAGES - 1 stages of weights, uncommitted.
    __device__ __forceinline__ void run(const MmaSource<S::W_COPIES> &weights, const MmaSource<S::T_COPIES> &tokens,
                                        uint32_t k_blocks, bool weights_ahead)
    {
#pragma unroll
        for (int i = 0; i < S::WM / 16; i++) {
#pragma unroll
            for (int j = 0; j < S::WN / 8; j++)
                acc[i][j][0] = acc[i][j][1] = acc[i][j][2] = acc[i][j][3] = 0.0f;
        }
        for (uint32_t k = 0; k < S::STAGES - 1; k++) {
            if (k < k_blocks) {
                if (!weights_ahead)
                    copy_weights(weights, k);
                copy_tokens(tokens, k);
            }
            prim::cp_async_commit();
        }
        for (uint32_t k = 0; k < k_blocks; k++) {
            const uint32_t next = k + S::STAGES - 1;

            prim::cp_async_wait<S::STAGES - 2>();
            __syncthreads(); // stage k has landed for all, and stage k - 1, whose place `next` takes, has been read by
                             // all
            if (next < k_blocks) {
                copy_weights(weights, next);
                copy_tokens(tokens, next);
            }
            prim::cp_async_commit();
            multiply(k);
        }
        prim::cp_async_wait<0>();
        __syncthreads();
    }

    // Calls visit(weight row in the tile, token in the tile, value) for every value of this thread.
    template <class F> __device__ __forceinline__ void each(F visit) const
    {
        const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const uint32_t m = warp % S::WARPS_M * S::WM + lane / 4, n = warp / S::WARPS_M * S::WN + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < S::WM / 16; i++) {
#pragma unroll
            for (int j = 0; j < S::WN / 8; j++) {
#pragma unroll
                for (int v = 0; v < 4; v++)
                    visit(m + i * 16 + v / 2 * 8, n + j * 8 + v % 2, acc[i][j][v]);
            }
        }
    }
};

} // namespace hrk
