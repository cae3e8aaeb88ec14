// Matrix instructions against plain loops: fragments, descriptors, swizzles, transposition, and the order of sums.
#include "harness.h"

namespace
{

constexpr uint32_t K = 64;

std::vector<float> floats(const std::vector<hrk_bf16> &v)
{
    std::vector<float> f;

    for (hrk_bf16 x : v)
        f.push_back(hrk::to_f32(x));
    return f;
}

// c[row, column] = sum over k, ascending, of a[row, k] b[column, k].
std::vector<float> product(const std::vector<hrk_bf16> &a, const std::vector<hrk_bf16> &b, uint32_t rows,
                           uint32_t columns)
{
    const std::vector<float> x = floats(a), y = floats(b);
    std::vector<float> c(rows * columns, 0.0f);

    for (uint32_t row = 0; row < rows; row++)
        for (uint32_t column = 0; column < columns; column++)
            for (uint32_t k = 0; k < K; k++)
                c[row * columns + column] += x[row * K + k] * y[column * K + k];
    return c;
}

void assert_same_bits(const std::vector<float> &got, const std::vector<float> &want)
{
    assert_int_equal(got.size(), want.size());
    for (size_t i = 0; i < got.size(); i++)
        if (__float_as_uint(got[i]) != __float_as_uint(want[i]))
            fail_msg("value %zu: %g, should be %g", i, static_cast<double>(got[i]), static_cast<double>(want[i]));
}

// ---------------------------------------------------------------- wgmma

enum Operands { A_SHARED, A_REGISTERS, B_MN_MAJOR };

// a: [64, 64], b: [N, 64], or [64, N] when MN-major. All values of c: [64, N].
template <int N, Operands O>
__global__ void __launch_bounds__(128) wgmma_kernel(float *c, const hrk_bf16 *a, const hrk_bf16 *b)
{
    unsigned char *tile_a = dyn_smem(), *tile_b = tile_a + 64 * 128;
    const uint32_t t = threadIdx.x, row = t / 32 * 16 + t % 32 / 4;
    uint32_t fragments[K / 16][4]; // all of them until the wait
    float acc[N / 2];

    for (uint32_t i = t; i < 64 * K; i += 128)
        *reinterpret_cast<hrk_bf16 *>(tile_a + hrk::swizzle128(i / K, i % K * 2)) = a[i];
    for (uint32_t i = t; i < N * K; i += 128) {
        const uint32_t line = O == B_MN_MAJOR ? i / N : i / K, at = O == B_MN_MAJOR ? i % N : i % K;
        *reinterpret_cast<hrk_bf16 *>(tile_b + hrk::swizzle128(line, at * 2)) = b[i];
    }
    prim::fence_proxy_async();
    __syncthreads();
    prim::wgmma_fence();
    for (uint32_t k = 0; k < K / 16; k++) {
        const uint64_t desc_a = prim::desc_128b(tile_a) + 2 * k;
        const int add = k > 0;
        uint32_t(&regs)[4] = fragments[k];
        for (uint32_t q = 0; q < 4; q++)
            regs[q] =
                *reinterpret_cast<const uint32_t *>(a + (row + 8 * (q & 1)) * K + k * 16 + t % 4 * 2 + 8 * (q >> 1));
        if constexpr (O == A_SHARED)
            prim::wgmma_bf16<N>(acc, desc_a, prim::desc_128b(tile_b) + 2 * k, add);
        else if constexpr (O == A_REGISTERS)
            prim::wgmma_bf16_ra<N>(acc, regs, prim::desc_128b(tile_b) + 2 * k, add);
        else
            prim::wgmma_bf16_tb<N>(acc, regs, prim::desc_128b_mn(tile_b) + 128 * k, add);
    }
    prim::wgmma_commit();
    prim::wgmma_wait<0>(acc);
    for (uint32_t i = 0; i < N / 2; i++)
        c[(row + 8 * (i >> 1 & 1)) * N + (i >> 2) * 8 + t % 4 * 2 + (i & 1)] = acc[i];
}

template <int N, Operands O> void check_wgmma()
{
    const std::vector<hrk_bf16> a = planted::random_bf16(64 * K, 1), b = planted::random_bf16(N * K, N);
    std::vector<hrk_bf16> given = b;
    DeviceArray<float> c(64 * N);

    if (O == B_MN_MAJOR)
        for (uint32_t i = 0; i < N * K; i++)
            given[i % K * N + i / K] = b[i];
    DeviceArray<hrk_bf16> d_a(a), d_b(given);
    const size_t tile_b = O == B_MN_MAJOR ? K * 128 : N * 128;
    launch_well(wgmma_kernel<N, O>, {dim3(1), dim3(128), 64 * 128 + tile_b}, c.get(), d_a.get(), d_b.get());
    assert_same_bits(c.values(), product(a, b, 64, N));
}

void wgmma_multiplies_tiles_of_every_width(void **)
{
    check_wgmma<8, A_SHARED>();
    check_wgmma<16, A_SHARED>();
    check_wgmma<24, A_SHARED>();
    check_wgmma<32, A_SHARED>();
    check_wgmma<48, A_SHARED>();
    check_wgmma<64, A_SHARED>();
    check_wgmma<96, A_SHARED>();
    check_wgmma<128, A_SHARED>();
    check_wgmma<192, A_SHARED>();
    check_wgmma<256, A_SHARED>();
}

void wgmma_takes_its_first_operand_from_registers(void **)
{
    check_wgmma<8, A_REGISTERS>();
    check_wgmma<24, A_REGISTERS>();
    check_wgmma<64, A_REGISTERS>();
    check_wgmma<256, A_REGISTERS>();
}

void wgmma_takes_a_transposed_second_operand(void **)
{
    check_wgmma<8, B_MN_MAJOR>();
    check_wgmma<16, B_MN_MAJOR>();
    check_wgmma<48, B_MN_MAJOR>();
    check_wgmma<64, B_MN_MAJOR>();
}

__global__ void __launch_bounds__(128) misaligned_descriptor()
{
    prim::desc_128b(dyn_smem() + 512);
}
__global__ void __launch_bounds__(96) three_warps()
{
    prim::wgmma_fence();
}
void wgmma_refuses_what_the_hardware_would_misread(void **)
{
    assert_says(launch_badly(misaligned_descriptor, {dim3(1), dim3(128), 2048}), "1024-byte pattern");
    assert_says(launch_badly(three_warps, {dim3(1), dim3(96), 0}), "warpgroup of 128 threads");
}

// ---------------------------------------------------------------- mma.sync

// a: [16, 64], b: [8, 64]; c: [16, 8].
__global__ void mma_kernel(float *c, const hrk_bf16 *a, const hrk_bf16 *b)
{
    const uint32_t lane = threadIdx.x, row = lane / 4, pair = lane % 4 * 2;
    float acc[4] = {0, 0, 0, 0};

    auto two = [](const hrk_bf16 *p) { return *reinterpret_cast<const uint32_t *>(p); };
    for (uint32_t k = 0; k < K; k += 16) {
        const uint32_t x[4] = {two(a + row * K + k + pair), two(a + (row + 8) * K + k + pair),
                               two(a + row * K + k + pair + 8), two(a + (row + 8) * K + k + pair + 8)};
        const uint32_t y[2] = {two(b + row * K + k + pair), two(b + row * K + k + pair + 8)};
        prim::mma_bf16_16816(acc, x, y);
    }
    for (uint32_t i = 0; i < 4; i++)
        c[(row + 8 * (i / 2)) * 8 + pair + i % 2] = acc[i];
}

void mma_sums_in_the_order_of_wgmma(void **)
{
    const std::vector<hrk_bf16> a = planted::random_bf16(16 * K, 2), b = planted::random_bf16(8 * K, 3);
    DeviceArray<hrk_bf16> d_a(a), d_b(b);
    DeviceArray<float> c(16 * 8);

    launch_well(mma_kernel, {dim3(1), dim3(32), 0}, c.get(), d_a.get(), d_b.get());
    assert_same_bits(c.values(), product(a, b, 16, 8));
}

// ---------------------------------------------------------------- ldmatrix, stmatrix

constexpr uint32_t PITCH = 24; // values from row to row

__global__ void load_matrices(uint32_t *out, bool is_transposed)
{
    __shared__ __align__(16) hrk_bf16 tile[32 * PITCH];
    const uint32_t lane = threadIdx.x;
    uint32_t r[4];

    for (uint32_t i = 0; i < PITCH; i++)
        tile[lane * PITCH + i] = static_cast<hrk_bf16>(lane * 256 + i);
    __syncwarp();
    if (is_transposed)
        prim::ldmatrix_x4_trans(r, tile + lane * PITCH);
    else
        prim::ldmatrix_x4(r, tile + lane * PITCH);
    for (uint32_t i = 0; i < 4; i++)
        out[i * 32 + lane] = r[i];
}

__global__ void store_matrices(uint16_t *out, bool is_transposed)
{
    __shared__ __align__(16) hrk_bf16 tile[32 * PITCH];
    const uint32_t lane = threadIdx.x;
    uint32_t r[4];

    for (uint32_t i = 0; i < 4; i++) // value: matrix, row, column, as a plain load would have them
        r[i] = (i << 8 | lane / 4 << 4 | lane % 4 * 2) * 0x10001u + 0x10000u;
    if (is_transposed)
        prim::stmatrix_x4_trans(tile + lane * PITCH, r);
    else
        prim::stmatrix_x4(tile + lane * PITCH, r);
    __syncwarp();
    for (uint32_t i = 0; i < 8; i++)
        out[lane * 8 + i] = tile[lane * PITCH + i];
}

void ldmatrix_spreads_rows_or_columns_over_lanes(void **)
{
    DeviceArray<uint32_t> out(128);

    for (bool is_transposed : {false, true}) {
        launch_well(load_matrices, {dim3(1), dim3(32), 0}, out.get(), is_transposed);
        const std::vector<uint32_t> got = out.values();
        for (uint32_t i = 0; i < 4; i++)
            for (uint32_t lane = 0; lane < 32; lane++)
                for (uint32_t half = 0; half < 2; half++) {
                    uint32_t row = lane / 4, column = lane % 4 * 2 + half;
                    if (is_transposed)
                        std::swap(row, column);
                    assert_int_equal(got[i * 32 + lane] >> 16 * half & 0xffff, (8 * i + row) * 256 + column);
                }
    }
}

void stmatrix_undoes_ldmatrix(void **)
{
    DeviceArray<uint16_t> out(256);

    for (bool is_transposed : {false, true}) {
        launch_well(store_matrices, {dim3(1), dim3(32), 0}, out.get(), is_transposed);
        const std::vector<uint16_t> got = out.values();
        for (uint32_t i = 0; i < 4; i++)
            for (uint32_t row = 0; row < 8; row++)
                for (uint32_t column = 0; column < 8; column++)
                    assert_int_equal(got[(8 * i + row) * 8 + column],
                                     is_transposed ? i << 8 | column << 4 | row : i << 8 | row << 4 | column);
    }
}

} // namespace

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wgmma_multiplies_tiles_of_every_width),
        cmocka_unit_test(wgmma_takes_its_first_operand_from_registers),
        cmocka_unit_test(wgmma_takes_a_transposed_second_operand),
        cmocka_unit_test(wgmma_refuses_what_the_hardware_would_misread),
        cmocka_unit_test(mma_sums_in_the_order_of_wgmma),
        cmocka_unit_test(ldmatrix_spreads_rows_or_columns_over_lanes),
        cmocka_unit_test(stmatrix_undoes_ldmatrix),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
