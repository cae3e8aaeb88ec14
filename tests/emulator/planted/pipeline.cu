// D[token, row] = bf16(sum over k of W[row, k] X[token, k]): the pipeline of the real products in small.
//
// A producer warpgroup fills a ring of stages, weights by one bulk copy, tokens by cp.async into swizzled rows; a
// consumer warpgroup multiplies with wgmma and sends tiles out through stmatrix and a bulk store. Two strips of 64 rows
// a block.
#include "device.h"

namespace planted
{

namespace
{

constexpr uint32_t ROWS = 64, TOKENS = 32, BLOCK_K = 64, K_BLOCKS = 5, STAGES = 3, STRIPS = 4, STRIPS_A_BLOCK = 2;
constexpr uint32_t N_TOKENS = 27, K = BLOCK_K * K_BLOCKS;
constexpr uint32_t WEIGHT_BYTES = ROWS * 128, CONSUMER_WARPS = 4;

struct alignas(1024) Shared {
    hrk_bf16 weights[STAGES][ROWS * BLOCK_K];
    hrk_bf16 tokens[STAGES][TOKENS * BLOCK_K];
    hrk_bf16 out[TOKENS * ROWS];
    uint64_t full[STAGES], empty[STAGES];
};

template <Fault F>
__global__ void __launch_bounds__(256)
    pipeline(hrk_bf16 *out, const hrk_bf16 *weights, const hrk_bf16 *tokens, uint32_t n_tokens)
{
    Shared &s = *reinterpret_cast<Shared *>(dyn_smem());
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t first_strip = blockIdx.x * STRIPS_A_BLOCK;
    uint32_t stage = 0, phase = 0;

    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < STAGES; i++) {
            prim::mbar_init(&s.full[i], F == NO_COPY_ARRIVAL ? 1 : 1 + 128);
            prim::mbar_init(&s.empty[i], F == EMPTY_COUNT ? CONSUMER_WARPS + 1 : CONSUMER_WARPS);
        }
        prim::fence_mbar_init();
    }
    if (F != NO_INIT_BARRIER)
        __syncthreads();
    auto advance = [&] {
        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    };

    if (warp < 4) { // producers
        for (uint32_t i = 0; i < STRIPS_A_BLOCK * K_BLOCKS; i++, advance()) {
            const uint32_t strip = first_strip + i / K_BLOCKS, k = i % K_BLOCKS;
            if (F != NO_EMPTY_WAIT)
                prim::mbar_wait(&s.empty[stage], F == WRONG_EMPTY_PARITY ? phase : phase ^ 1);
            if (threadIdx.x == 0) {
                const uint32_t bytes = WEIGHT_BYTES - (F == SHORT_BYTES ? 4096 : 0) + (F == LONG_BYTES ? 128 : 0);
                prim::mbar_arrive_expect_tx(&s.full[stage], bytes);
                prim::bulk_load(s.weights[stage], weights + (strip * K_BLOCKS + k) * ROWS * BLOCK_K, WEIGHT_BYTES,
                                &s.full[stage]);
            }
            for (uint32_t c = threadIdx.x; c < TOKENS * 8; c += 128) { // 16-byte chunks
                const uint32_t token = c / 8, at = c % 8 * 16;
                const uint32_t to =
                    F == WRONG_SWIZZLE ? token * 128 + (at ^ (token & 3) << 4) : hrk::swizzle128(token, at);
                prim::cp_async16(reinterpret_cast<char *>(s.tokens[stage]) + to,
                                 tokens + (token < n_tokens ? token : 0) * K + k * BLOCK_K + at / 2, token < n_tokens);
            }
            if (F != NO_COPY_ARRIVAL)
                prim::mbar_arrive_cp_async(&s.full[stage]);
        }
        if (F == EXIT_WITH_LOAD && threadIdx.x == 0) {
            prim::mbar_wait(&s.empty[stage], phase ^ 1);
            prim::bulk_load(s.weights[stage], weights, WEIGHT_BYTES, &s.full[stage]); // reported: EXIT_WITH_LOAD
        }
        return;
    }

    float acc[TOKENS / 2] = {};
    for (uint32_t t = 0; t < STRIPS_A_BLOCK; t++) { // consumers
        for (uint32_t k = 0; k < K_BLOCKS; k++, advance()) {
            if (F != NO_FULL_WAIT)
                prim::mbar_wait(&s.full[stage], F == WRONG_FULL_PARITY ? phase ^ 1 : phase);
            if (F != NO_PROXY_FENCE)
                prim::fence_proxy_async(); // cp.async writes by the generic proxy
            const uint64_t a = prim::desc_128b(s.weights[stage]), b = prim::desc_128b(s.tokens[stage]);
            if (F != NO_WGMMA_FENCE)
                prim::wgmma_fence();
            // The last sixteen columns of the weights go through registers.
            const uint32_t row = warp % 4 * 16 + lane % 16, in_registers = BLOCK_K / 16 - 1;
            uint32_t regs[4];
            for (uint32_t i = 0; i < in_registers; i++)
                // reported: next line for NO_PROXY_FENCE, NO_FULL_WAIT
                prim::wgmma_bf16<TOKENS>(acc, a + (F == DESCRIPTOR_STEP ? 4 : 2) * i, b + 2 * i,
                                         F == NO_ACCUMULATOR_RESET || k + i > 0);
            prim::ldmatrix_x4(regs, reinterpret_cast<const char *>(s.weights[stage]) +
                                        hrk::swizzle128(row, in_registers * 32 + lane / 16 * 16));
            __syncwarp(); // the warp's one arrival speaks for all lanes' reads
            prim::wgmma_bf16_ra<TOKENS>(acc, regs, b + 2 * in_registers, true);
            prim::wgmma_commit();
            if (F == EARLY_OVERWRITE)
                regs[0] ^= 1; // reported: EARLY_OVERWRITE
            if (F == EARLY_RELEASE || (F == RELEASE_OF_ONE_WARP && warp == 6)) {
                if (lane == 0)
                    prim::mbar_arrive(&s.empty[stage]);
                prim::wgmma_wait<0>();
                continue;
            }
            if (F != NO_WGMMA_WAIT)
                prim::wgmma_wait<0>(acc);
            if (lane == 0 || F == OVER_ARRIVAL)
                prim::mbar_arrive(&s.empty[stage]);
        }

        if (threadIdx.x == 128 && F != NO_STORE_READ_WAIT)
            prim::bulk_wait_read<0>(); // the tile before has left
        prim::bar_sync(1, F == BARRIER_COUNT ? 256 : 128);
        const uint32_t column = warp % 4 * 16 + (lane / 8 % 2) * 8;
        for (uint32_t j = 0; j < TOKENS / 16; j++) { // two matrices of rows by two of tokens
            const float *v = acc + 8 * j;
            const uint32_t r[4] = {hrk::pack_bf16(v[0], v[1]), hrk::pack_bf16(v[2], v[3]), hrk::pack_bf16(v[4], v[5]),
                                   hrk::pack_bf16(v[6], v[7])};
            prim::stmatrix_x4_trans(s.out + (16 * j + lane / 16 * 8 + lane % 8) * ROWS + column, r);
        }
        if (F != NO_STORE_FENCE)
            prim::fence_proxy_async();
        if (F != NO_STORE_BARRIER)
            prim::bar_sync(1, 128);
        if (threadIdx.x == 128) {
            hrk_bf16 *to = out + (first_strip + t) * N_TOKENS * ROWS;
            // reported: next line for NO_STORE_FENCE
            prim::bulk_store(to, s.out, (F == UNMASKED_TAIL ? TOKENS : n_tokens) * ROWS * 2);
            if (F != STORE_NOT_COMMITTED)
                prim::bulk_commit();
        }
    }
    if (threadIdx.x == 128 && F != EXIT_WITH_STORE)
        prim::bulk_wait<0>();
}

template <Fault F> struct LaunchPipeline {
    static int run(hrk_bf16 *out, const hrk_bf16 *weights, const hrk_bf16 *tokens)
    {
        return hrk::launch(pipeline<F>, {dim3(STRIPS / STRIPS_A_BLOCK), dim3(256), sizeof(Shared)}, &ON, out, weights,
                           tokens, N_TOKENS);
    }
};

} // namespace

bool run_pipeline(Fault fault)
{
    const std::vector<hrk_bf16> w = random_bf16(STRIPS * ROWS * K, 1), x = random_bf16(N_TOKENS * K, 2);
    std::vector<hrk_bf16> tiles(w.size());

    for (uint32_t row = 0; row < STRIPS * ROWS; row++)
        for (uint32_t k = 0; k < K; k++)
            tiles[(row / ROWS * K_BLOCKS + k / BLOCK_K) * ROWS * BLOCK_K +
                  hrk::swizzle128(row % ROWS, k % BLOCK_K * 2) / 2] = w[row * K + k];
    DeviceArray<hrk_bf16> d_w(tiles), d_x(x), d_out(STRIPS * N_TOKENS * ROWS);
    const int error =
        launch_one<LaunchPipeline, NONE, WRONG_SWIZZLE, WRONG_FULL_PARITY, WRONG_EMPTY_PARITY, NO_FULL_WAIT,
                   NO_EMPTY_WAIT, EARLY_RELEASE, RELEASE_OF_ONE_WARP, SHORT_BYTES, LONG_BYTES, DESCRIPTOR_STEP,
                   UNMASKED_TAIL, NO_PROXY_FENCE, NO_WGMMA_FENCE, NO_WGMMA_WAIT, EARLY_OVERWRITE, NO_ACCUMULATOR_RESET,
                   NO_COPY_ARRIVAL, NO_STORE_BARRIER, NO_STORE_FENCE, NO_STORE_READ_WAIT, STORE_NOT_COMMITTED,
                   EXIT_WITH_STORE, BARRIER_COUNT, OVER_ARRIVAL, EMPTY_COUNT, NO_INIT_BARRIER, EXIT_WITH_LOAD>(
            fault, d_out.get(), d_w.get(), d_x.get());
    const std::vector<hrk_bf16> out = d_out.values();
    if (error || out.empty())
        return false;
    for (uint32_t row = 0; row < STRIPS * ROWS; row++)
        for (uint32_t t = 0; t < N_TOKENS; t++) {
            float sum = 0;
            for (uint32_t k = 0; k < K; k++)
                sum += hrk::to_f32(w[row * K + k]) * hrk::to_f32(x[t * K + k]);
            if (out[(row / ROWS * N_TOKENS + t) * ROWS + row % ROWS] != hrk::to_bf16(sum))
                return false;
        }
    return true;
}

} // namespace planted
