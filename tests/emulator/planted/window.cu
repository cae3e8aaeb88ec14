// O = bf16(Q K^T + 1, masked) V for 16 queries: a cp.async double buffer with block barriers, ldmatrix and mma.sync.
//
// Keys beyond n_keys lie in memory up to n_stored, with junk in them, as in the last page of a sequence.
#include "device.h"

namespace planted
{

namespace
{

constexpr uint32_t QUERIES = 16, D = 64, LD = D + 8, TILE = 32, THREADS = 64, N_KEYS = 70, N_STORED = 80;

struct Shared {
    hrk_bf16 q[QUERIES][LD], k[2][TILE][LD], v[2][TILE][LD], p[QUERIES][TILE + 8];
    float first[THREADS];
};

template <Fault F>
__global__ void __launch_bounds__(THREADS) window(float *out, float *first, const hrk_bf16 *q, const hrk_bf16 *keys,
                                                  const hrk_bf16 *values, uint32_t n_keys, uint32_t n_stored)
{
    Shared &s = *reinterpret_cast<Shared *>(dyn_smem());
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_tiles = (n_keys + TILE - 1) / TILE;
    float o[4][4] = {};

    auto load_tile = [&](uint32_t tile, uint32_t buffer) {
        for (uint32_t c = threadIdx.x; c < TILE * D / 8; c += THREADS) {
            const uint32_t row = c / 8, at = c % 8 * 8, key = tile * TILE + row;
            const bool is_stored = key < n_stored || F == UNMASKED_COPY;
            // reported: next line for UNMASKED_COPY
            prim::cp_async16(&s.k[buffer][row][at], keys + (is_stored ? key : 0) * D + at, is_stored);
            prim::cp_async16(&s.v[buffer][row][at], values + (is_stored ? key : 0) * D + at, is_stored);
        }
        prim::cp_async_commit();
    };
    for (uint32_t i = threadIdx.x; i < QUERIES * D; i += THREADS)
        s.q[i / D][i % D] = q[i];
    load_tile(0, 0);
    for (uint32_t tile = 0; tile < n_tiles; tile++) {
        const uint32_t buffer = tile & 1;
        if (tile + 1 < n_tiles)
            load_tile(tile + 1, buffer ^ 1);
        else
            prim::cp_async_commit(); // so that one group more is always in flight
        prim::cp_async_wait<F == NO_CP_ASYNC_WAIT ? 2 : 1>();
        if (F != NO_BARRIER_AFTER_WAIT)
            __syncthreads();

        float score[2][4] = {};
        for (uint32_t i = 0; i < D / 16; i++) {
            uint32_t a[4], b[4];
            prim::ldmatrix_x4(a, &s.q[lane % 16][i * 16 + lane / 16 * 8]);
            // reported: next line for NO_CP_ASYNC_WAIT
            prim::ldmatrix_x4(b, &s.k[buffer][warp * 16 + lane / 16 * 8 + lane % 8][i * 16 + lane / 8 % 2 * 8]);
            const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
            prim::mma_bf16_16816(score[0], a, b0);
            prim::mma_bf16_16816(score[1], a, b1);
        }
        for (uint32_t j = 0; j < 2; j++)
            for (uint32_t h = 0; h < 2; h++) { // rows lane / 4 and lane / 4 + 8
                const uint32_t at = warp * 16 + j * 8 + lane % 4 * 2, key = tile * TILE + at;
                auto masked = [&](uint32_t e) {
                    const bool is_key = F == MASK_OFF_BY_ONE ? key + e <= n_keys : key + e < n_keys;
                    return is_key ? score[j][2 * h + e] + 1.0f : 0.0f;
                };
                *reinterpret_cast<uint32_t *>(&s.p[lane / 4 + 8 * h][at]) = hrk::pack_bf16(masked(0), masked(1));
            }
        __syncthreads();

        for (uint32_t i = 0; i < TILE / 16; i++)
            for (uint32_t c = 0; c < 2; c++) {
                uint32_t a[4], b[4];
                prim::ldmatrix_x4(a, &s.p[lane % 16][i * 16 + lane / 16 * 8]);
                const void *row =
                    &s.v[buffer][i * 16 + lane / 8 % 2 * 8 + lane % 8][warp * 32 + c * 16 + lane / 16 * 8];
                if (F == NO_TRANSPOSITION)
                    prim::ldmatrix_x4(b, row);
                else
                    prim::ldmatrix_x4_trans(b, row);
                const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
                prim::mma_bf16_16816(o[2 * c], a, b0);
                prim::mma_bf16_16816(o[2 * c + 1], a, b1);
            }
        if (F != NO_BARRIER_BEFORE_REFILL)
            __syncthreads();
    }

    for (uint32_t c = 0; c < 4; c++)
        for (uint32_t j = 0; j < 4; j++) {
            const uint32_t row = lane / 4 + 8 * (j / 2), column = warp * 32 + c * 8 + lane % 4 * 2 + j % 2;
            out[row * D + column + (F == GLOBAL_OUT_OF_BOUNDS ? 1 : 0)] = o[c][j]; // reported: GLOBAL_OUT_OF_BOUNDS
        }
    if (F != SHARED_UNINITIALISED || warp == 0)
        s.first[threadIdx.x + (F == SHARED_OUT_OF_BOUNDS ? 1 : 0)] = o[0][0]; // reported: SHARED_OUT_OF_BOUNDS
    __syncthreads();
    first[threadIdx.x] = s.first[THREADS - 1 - threadIdx.x]; // reported: SHARED_UNINITIALISED
}

template <Fault F> struct LaunchWindow {
    static int run(float *out, float *first, const hrk_bf16 *q, const hrk_bf16 *k, const hrk_bf16 *v)
    {
        return hrk::launch(window<F>, {dim3(1), dim3(THREADS), sizeof(Shared)}, &ON, out, first, q, k, v, N_KEYS,
                           N_STORED);
    }
};

} // namespace

bool run_window(Fault fault)
{
    const std::vector<hrk_bf16> q = random_bf16(QUERIES * D, 3), k = random_bf16(N_STORED * D, 4),
                                v = random_bf16(N_STORED * D, 5);
    DeviceArray<hrk_bf16> d_q(q), d_k(k), d_v(v);
    DeviceArray<float> d_out(QUERIES * D), d_first(THREADS);
    const int error =
        launch_one<LaunchWindow, NONE, NO_CP_ASYNC_WAIT, NO_BARRIER_AFTER_WAIT, NO_BARRIER_BEFORE_REFILL, UNMASKED_COPY,
                   MASK_OFF_BY_ONE, NO_TRANSPOSITION, SHARED_OUT_OF_BOUNDS, SHARED_UNINITIALISED, GLOBAL_OUT_OF_BOUNDS>(
            fault, d_out.get(), d_first.get(), d_q.get(), d_k.get(), d_v.get());
    const std::vector<float> out = d_out.values(), first = d_first.values();
    if (error || out.empty() || first.empty())
        return false;
    for (uint32_t row = 0; row < QUERIES; row++)
        for (uint32_t d = 0; d < D; d++) {
            float sum = 0;
            for (uint32_t key = 0; key < N_KEYS; key++) {
                float score = 0;
                for (uint32_t i = 0; i < D; i++)
                    score += hrk::to_f32(q[row * D + i]) * hrk::to_f32(k[key * D + i]);
                sum += hrk::round_bf16(score + 1.0f) * hrk::to_f32(v[key * D + d]);
            }
            if (!is_close(out[row * D + d], sum, 2e-3f))
                return false;
        }
    for (uint32_t t = 0; t < THREADS; t++) { // of thread 63 - t: row lane / 4, column 32 warp + 2 (lane % 4)
        const uint32_t from = THREADS - 1 - t;
        if (first[t] != out[from % 32 / 4 * D + from / 32 * 32 + from % 4 * 2])
            return false;
    }
    return true;
}

} // namespace planted
