// Copies, mbarriers, clusters, programmatic launches and the counts, against plain computations and by their reports.
#include "harness.h"

namespace
{

constexpr uint32_t THREADS = 64;

std::vector<uint32_t> numbers(size_t n)
{
    std::vector<uint32_t> v(n);

    for (size_t i = 0; i < n; i++)
        v[i] = static_cast<uint32_t>(i * 2654435761u);
    return v;
}

// ---------------------------------------------------------------- bulk copies and cp.async

struct Buffers {
    uint32_t bulk[256], pieces[256];
    uint64_t landed;
};

// In by a bulk copy and by cp.async (the last piece zero-filled), both on one mbarrier; out by a bulk store.
__global__ void __launch_bounds__(THREADS) in_and_out(uint32_t *out, uint32_t *out_pieces, const uint32_t *in)
{
    Buffers &s = *reinterpret_cast<Buffers *>(dyn_smem());

    if (threadIdx.x == 0) {
        prim::mbar_init(&s.landed, 1 + THREADS);
        prim::fence_mbar_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        prim::mbar_arrive_expect_tx(&s.landed, sizeof s.bulk);
        prim::bulk_load(s.bulk, in, sizeof s.bulk, &s.landed, prim::policy_evict_last());
        prim::bulk_prefetch_l2(in + 256, 1024);
    }
    prim::cp_async16(&s.pieces[threadIdx.x * 4], in + 256 + threadIdx.x * 4, threadIdx.x != THREADS - 1);
    prim::mbar_arrive_cp_async(&s.landed);
    while (!prim::mbar_try_wait(&s.landed, 0)) {
    }
    for (uint32_t i = 0; i < 4; i++)
        out_pieces[threadIdx.x * 4 + i] = s.pieces[(threadIdx.x ^ 1) * 4 + i];
    for (uint32_t i = threadIdx.x; i < 256; i += THREADS)
        s.bulk[i]++;
    prim::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        prim::bulk_store(out, s.bulk, 512);
        prim::bulk_commit();
        prim::bulk_store(out + 128, s.bulk + 128, 512);
        prim::bulk_commit();
        prim::bulk_wait_read<1>();
        prim::bulk_wait<0>();
    }
}

void copies_move_what_they_say(void **)
{
    const std::vector<uint32_t> in = numbers(512);
    DeviceArray<uint32_t> d_in(in), out(256), pieces(256);

    launch_well(in_and_out, {dim3(1), dim3(THREADS), sizeof(Buffers)}, out.get(), pieces.get(),
                static_cast<const uint32_t *>(d_in.get()));
    for (uint32_t i = 0; i < 256; i++) {
        const uint32_t from = i ^ 4;
        assert_int_equal(out.values()[i], in[i] + 1);
        assert_int_equal(pieces.values()[i], from / 4 == THREADS - 1 ? 0 : in[256 + from]);
    }
}

void a_launch_counts_its_bytes(void **)
{
    const std::vector<uint32_t> in = numbers(512);
    DeviceArray<uint32_t> d_in(in), out(256), pieces(256);

    simt::take_launches();
    launch_well(in_and_out, {dim3(1), dim3(THREADS), sizeof(Buffers)}, out.get(), pieces.get(),
                static_cast<const uint32_t *>(d_in.get()));
    const std::vector<simt::LaunchRecord> launches = simt::take_launches();
    assert_int_equal(launches.size(), 1);
    assert_string_equal(launches[0].kernel.c_str(), "in_and_out");
    assert_int_equal(launches[0].counters.bulk_load_bytes, 1024);
    assert_int_equal(launches[0].counters.bulk_prefetch_bytes, 1024);
    assert_int_equal(launches[0].counters.bulk_store_bytes, 1024);
    assert_int_equal(launches[0].counters.cp_async_bytes, 63 * 16);
    if (simt::config.check && simt::is_checked_build())
        assert_int_equal(launches[0].counters.global_write_bytes, 1024 + 1024);
}

// ---------------------------------------------------------------- tensor copies

constexpr uint32_t BOX_ROWS = 16, BOX_COLUMNS = 64, TENSOR_ROWS = 21, TENSOR_COLUMNS = 72;

struct TensorBuffers {
    uint16_t tile[BOX_ROWS * BOX_COLUMNS];
    uint64_t landed;
};

// Loads the box at (column, row), undoes the swizzle into `plain`, and stores the box again at the same place of the
// target.
__global__ void tensor_copy(const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to,
                            int column, int row, uint16_t *plain)
{
    TensorBuffers &s = *reinterpret_cast<TensorBuffers *>(dyn_smem());

    if (threadIdx.x == 0) {
        prim::prefetch_tensormap(&from);
        prim::mbar_init(&s.landed, 1);
        prim::mbar_arrive_expect_tx(&s.landed, sizeof s.tile);
        prim::tma_load_2d(s.tile, &from, &s.landed, column, row);
    }
    __syncthreads();
    prim::mbar_wait(&s.landed, 0);
    for (uint32_t i = threadIdx.x; i < BOX_ROWS * BOX_COLUMNS; i += blockDim.x)
        plain[i] = s.tile[hrk::swizzle128(i / BOX_COLUMNS, i % BOX_COLUMNS * 2) / 2];
    if (threadIdx.x == 0) {
        prim::tma_store_2d(&to, s.tile, column, row);
        prim::bulk_commit();
        prim::bulk_wait<0>();
    }
}

void tensor_copies_swizzle_and_clip(void **)
{
    std::vector<uint16_t> in(TENSOR_ROWS * TENSOR_COLUMNS);
    const uint64_t dims[] = {TENSOR_COLUMNS, TENSOR_ROWS}, strides[] = {TENSOR_COLUMNS * 2};
    const uint32_t box[] = {BOX_COLUMNS, BOX_ROWS};
    const int column = 16, row = 9; // the box leaves the tensor on two sides
    CUtensorMap from, to;

    for (size_t i = 0; i < in.size(); i++)
        in[i] = static_cast<uint16_t>(i + 1);
    DeviceArray<uint16_t> d_in(in), d_out(std::vector<uint16_t>(in.size(), 7)), plain(BOX_ROWS * BOX_COLUMNS);
    assert_true(simt::make_tensor_map(&from, d_in.get(), 2, 2, dims, strides, box, 128));
    assert_true(simt::make_tensor_map(&to, d_out.get(), 2, 2, dims, strides, box, 128));
    launch_well(tensor_copy, {dim3(1), dim3(32), sizeof(TensorBuffers)}, from, to, column, row, plain.get());
    const std::vector<uint16_t> out = d_out.values(), tile = plain.values();
    for (int r = 0; r < static_cast<int>(BOX_ROWS); r++)
        for (int c = 0; c < static_cast<int>(BOX_COLUMNS); c++) {
            const bool is_inside =
                row + r < static_cast<int>(TENSOR_ROWS) && column + c < static_cast<int>(TENSOR_COLUMNS);
            assert_int_equal(
                tile[static_cast<size_t>(r) * BOX_COLUMNS + static_cast<size_t>(c)],
                is_inside ? in[static_cast<size_t>((row + r) * static_cast<int>(TENSOR_COLUMNS) + column + c)] : 0);
        }
    for (uint32_t i = 0; i < in.size(); i++)
        assert_int_equal(out[i], i / TENSOR_COLUMNS >= 9 && i % TENSOR_COLUMNS >= 16 ? in[i] : 7);
    assert_false(simt::make_tensor_map(&from, d_in.get() + 1, 2, 2, dims, strides, box, 128));
}

// ---------------------------------------------------------------- mbarriers

enum Misuse { UNINITIALISED, OVERWRITTEN, TOO_MANY_ARRIVALS, TOO_MANY_BYTES, SMALL_COPY, STRANGE_ADDRESS };

__global__ void misuse(int which, const uint32_t *in)
{
    Buffers &s = *reinterpret_cast<Buffers *>(dyn_smem());

    if (which == UNINITIALISED)
        prim::mbar_arrive(&s.landed);
    prim::mbar_init(&s.landed, 1);
    if (which == OVERWRITTEN) {
        s.landed = 0;
        prim::mbar_arrive(&s.landed);
    }
    if (which == TOO_MANY_ARRIVALS) {
        prim::mbar_arrive_expect_tx(&s.landed, 1024);
        prim::mbar_arrive(&s.landed);
    }
    if (which == TOO_MANY_BYTES)
        prim::mbar_arrive_expect_tx(&s.landed, 1 << 20);
    if (which == SMALL_COPY)
        prim::bulk_load(s.bulk, in, 24, &s.landed);
    if (which == STRANGE_ADDRESS)
        prim::bulk_load(s.bulk, in + 300, 1024, &s.landed);
}

void mbarriers_and_copies_are_held_to_their_rules(void **)
{
    const char *const reports[] = {
        "was never initialised", "was overwritten (initialised at", "more arrivals in this phase than its count 1",
        "more than 2^20 - 1",    "must be multiples of 16",         "out of bounds"};

    for (int which = UNINITIALISED; which <= STRANGE_ADDRESS; which++) {
        DeviceArray<uint32_t> in(numbers(512));
        assert_says(
            launch_badly(misuse, {dim3(1), dim3(1), sizeof(Buffers)}, which, static_cast<const uint32_t *>(in.get())),
            reports[which]);
    }
}

// ---------------------------------------------------------------- clusters

struct Ring {
    uint32_t value, from_left;
    uint64_t told;
};

// Each block tells its right neighbour its index; ranks count along x.
__global__ void ring(uint32_t *out)
{
    Ring &s = *reinterpret_cast<Ring *>(dyn_smem());
    const uint32_t rank = prim::cluster_rank(), right = (rank + 1) % 4;

    if (threadIdx.x == 0) {
        prim::mbar_init(&s.told, 1);
        prim::fence_mbar_init();
    }
    prim::cluster_arrive();
    prim::cluster_wait();
    if (threadIdx.x == 0) {
        *prim::cluster_map(&s.from_left, right) = blockIdx.x;
        prim::mbar_arrive_cluster(&s.told, right);
        prim::mbar_wait(&s.told, 0);
        out[blockIdx.x] = rank << 16 | s.from_left;
    }
    prim::cluster_arrive();
    prim::cluster_wait();
}

void blocks_of_a_cluster_write_to_each_other(void **)
{
    DeviceArray<uint32_t> out(8);

    launch_well(ring, {dim3(8), dim3(32), sizeof(Ring), 4}, out.get());
    for (uint32_t i = 0; i < 8; i++)
        assert_int_equal(out.values()[i], i % 4 << 16 | (i / 4 * 4 + (i + 3) % 4));
}

// ---------------------------------------------------------------- programmatic launches

__global__ void write_after_wait(uint32_t *out, bool launches_first)
{
    if (launches_first)
        prim::griddep_launch();
    prim::griddep_wait();
    prim::griddep_launch();
    out[threadIdx.x] = 1;
}
__global__ void read_first(uint32_t *out, const uint32_t *in)
{
    const uint32_t v = in[threadIdx.x];

    prim::griddep_wait();
    out[threadIdx.x] = v;
}

cudaError_t run_three(bool launches_first)
{
    DeviceArray<uint32_t> a(32), b(32), c(32);

    hrk::launch(write_after_wait, {dim3(1), dim3(32), 0}, &planted::ON, a.get(), false);
    hrk::launch(write_after_wait, {dim3(1), dim3(32), 0}, &planted::ON_PROGRAMMATIC, b.get(), launches_first);
    hrk::launch(read_first, {dim3(1), dim3(32), 0}, &planted::ON_PROGRAMMATIC, c.get(),
                static_cast<const uint32_t *>(a.get()));
    return cudaDeviceSynchronize();
}

// The middle kernel waits for the first, so the last may read the first's output at once, unless the middle one let it
// start before it had waited.
void a_kernel_passes_on_what_it_has_not_waited_for(void **)
{
    if (!simt::config.check || !simt::is_checked_build())
        return; // only the checked build sees plain reads
    assert_int_equal(run_three(false), cudaSuccess);
    simt::config.quiet = true;
    assert_int_not_equal(run_three(true), cudaSuccess);
    simt::config.quiet = false;
    assert_says(simt::take_report(), "that the kernel before wrote");
    emu_reset();
}

} // namespace

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copies_move_what_they_say),
        cmocka_unit_test(a_launch_counts_its_bytes),
        cmocka_unit_test(tensor_copies_swizzle_and_clip),
        cmocka_unit_test(mbarriers_and_copies_are_held_to_their_rules),
        cmocka_unit_test(blocks_of_a_cluster_write_to_each_other),
        cmocka_unit_test(a_kernel_passes_on_what_it_has_not_waited_for),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
