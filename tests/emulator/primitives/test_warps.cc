// Warp collectives, block barriers, atomics and the scalar functions that nvcc builds in, against plain computations.
#include "harness.h"

namespace
{

constexpr uint32_t FULL = 0xffffffffu;

float input(uint32_t lane)
{
    return static_cast<float>(lane * 7 % 32) * 0.37f - 3.0f;
}

// ---------------------------------------------------------------- shuffles and votes

enum { XOR_5, XOR_2_OF_8, DOWN_3, DOWN_3_OF_16, UP_1, FROM_9, N_SHUFFLES };

__global__ void shuffles(uint32_t *out)
{
    const uint32_t lane = threadIdx.x;
    const uint32_t v[N_SHUFFLES] = {__shfl_xor_sync(FULL, lane, 5),  __shfl_xor_sync(FULL, lane, 2, 8),
                                    __shfl_down_sync(FULL, lane, 3), __shfl_down_sync(FULL, lane, 3, 16),
                                    __shfl_up_sync(FULL, lane, 1),   __shfl_sync(FULL, lane, 9)};

    for (uint32_t i = 0; i < N_SHUFFLES; i++)
        out[i * 32 + lane] = v[i];
}

void shuffles_move_what_they_say(void **)
{
    DeviceArray<uint32_t> out(N_SHUFFLES * 32);

    launch_well(shuffles, {dim3(1), dim3(32), 0}, out.get());
    const std::vector<uint32_t> got = out.values();
    for (uint32_t lane = 0; lane < 32; lane++) {
        assert_int_equal(got[XOR_5 * 32 + lane], lane ^ 5);
        assert_int_equal(got[XOR_2_OF_8 * 32 + lane], lane ^ 2);
        assert_int_equal(got[DOWN_3 * 32 + lane], lane + 3 < 32 ? lane + 3 : lane);
        assert_int_equal(got[DOWN_3_OF_16 * 32 + lane], lane % 16 + 3 < 16 ? lane + 3 : lane);
        assert_int_equal(got[UP_1 * 32 + lane], lane ? lane - 1 : 0);
        assert_int_equal(got[FROM_9 * 32 + lane], 9);
    }
}

struct Votes {
    uint32_t odd, any, all, same, halves[2], sum, largest, elected;
    int smallest;
};

__global__ void votes(Votes *out)
{
    const uint32_t lane = threadIdx.x, half = lane / 16;
    Votes v;

    v.odd = __ballot_sync(FULL, lane & 1);
    v.any = static_cast<uint32_t>(__any_sync(FULL, lane == 31));
    v.all = static_cast<uint32_t>(__all_sync(FULL, lane < 31));
    v.same = __match_any_sync(FULL, lane % 3);
    v.halves[0] = v.halves[1] = 0;
    v.halves[half] = __reduce_add_sync(half ? 0xffff0000u : 0xffffu, lane); // two collectives at once
    v.sum = __reduce_add_sync(FULL, lane);
    v.largest = __reduce_max_sync(FULL, lane * 5 % 32);
    v.smallest = __reduce_min_sync(FULL, static_cast<int>(lane) - 20);
    v.elected = prim::elect_one();
    out[lane] = v;
}

void votes_see_every_lane(void **)
{
    DeviceArray<Votes> out(32);

    launch_well(votes, {dim3(1), dim3(32), 0}, out.get());
    uint32_t n_elected = 0;
    for (uint32_t lane = 0; lane < 32; lane++) {
        const Votes v = out.values()[lane];
        uint32_t same = 0;
        for (uint32_t i = lane % 3; i < 32; i += 3)
            same |= 1u << i;
        assert_int_equal(v.odd, 0xaaaaaaaau);
        assert_int_equal(v.any, 1);
        assert_int_equal(v.all, 0);
        assert_int_equal(v.same, same);
        assert_int_equal(v.halves[lane / 16], lane / 16 ? 376 : 120);
        assert_int_equal(v.sum, 496);
        assert_int_equal(v.largest, 31);
        assert_int_equal(v.smallest, -20);
        n_elected += v.elected;
    }
    assert_int_equal(n_elected, 1);
}

__global__ void reductions(float *out, const float *in)
{
    const float x = in[threadIdx.x];
    float butterfly = x;

    for (int lanes = 16; lanes > 0; lanes /= 2)
        butterfly += __shfl_xor_sync(FULL, butterfly, lanes);
    out[threadIdx.x] = prim::warp_sum(x);
    out[32 + threadIdx.x] = butterfly;
    out[64 + threadIdx.x] = prim::warp_max(x);
}

void a_warp_sum_has_the_bits_of_its_butterfly(void **)
{
    std::vector<float> in(32);

    for (uint32_t i = 0; i < 32; i++)
        in[i] = input(i) * 1.7e-3f;
    DeviceArray<float> d_in(in), out(96);
    launch_well(reductions, {dim3(1), dim3(32), 0}, out.get(), d_in.get());
    const std::vector<float> got = out.values();
    for (uint32_t i = 0; i < 32; i++) {
        assert_memory_equal(&got[i], &got[32 + i], sizeof(float));
        assert_true(got[64 + i] == *std::max_element(in.begin(), in.end()));
    }
}

// ---------------------------------------------------------------- barriers

__global__ void turns(int *out)
{
    __shared__ int steps;

    if (threadIdx.x == 0)
        steps = 0;
    __syncthreads();
    if (threadIdx.x < 32) { // the second warp goes first, the first one waits for it
        prim::bar_sync(1, 64);
        if (threadIdx.x == 0)
            out[0] = steps;
    } else if (threadIdx.x < 64) {
        if (threadIdx.x == 32)
            steps = 1;
        prim::bar_arrive(1, 64);
    }
    const int odd = __syncthreads_count(threadIdx.x & 1), any = __syncthreads_or(threadIdx.x == 95);
    const int all = __syncthreads_and(threadIdx.x != 95);
    if (threadIdx.x == 0) {
        out[1] = odd;
        out[2] = any != 0;
        out[3] = all != 0;
    }
}

void barriers_count_and_order(void **)
{
    DeviceArray<int> out(4);

    launch_well(turns, {dim3(1), dim3(96), 0}, out.get());
    assert_int_equal(out.values()[0], 1);
    assert_int_equal(out.values()[1], 48);
    assert_int_equal(out.values()[2], 1);
    assert_int_equal(out.values()[3], 0);
}

__global__ void two_counts()
{
    prim::bar_sync(2, threadIdx.x < 32 ? 64 : 96);
}
__global__ void one_waits_alone()
{
    if (threadIdx.x / 32 == 1)
        prim::bar_sync(3, 64);
    else if (threadIdx.x != 5)
        __syncwarp();
}

void a_deadlock_names_barriers_lines_and_lanes(void **)
{
    assert_says(launch_badly(two_counts, {dim3(1), dim3(96), 0}), "in the arrivals before");
    const std::string report = launch_badly(one_waits_alone, {dim3(1), dim3(64), 0});
    assert_says(report, "one_waits_alone");
    assert_says(report, "lanes 00000020 of the mask have exited");
}

__global__ void lane_5_waits_elsewhere()
{
    if (threadIdx.x == 5)
        prim::bar_sync(3, 32);
    else
        __syncwarp();
}

void a_deadlock_shows_who_is_missing(void **)
{
    const std::string report = launch_badly(lane_5_waits_elsewhere, {dim3(1), dim3(32), 0});

    assert_says(report, "deadlock in kernel");
    assert_says(report, "barrier 3: 1 of 32 threads arrived");
    assert_says(report, "warp 0 lanes 00000020");
    assert_says(report, "warp 0 lanes ffffffdf");
    assert_says(report, "test_warps.cc:");
}

// ---------------------------------------------------------------- atomics

struct Tallies {
    uint32_t sum, most, bits, swaps, wrapped;
    int least;
    unsigned long long wide;
};

__global__ void tally(Tallies *t)
{
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;

    atomicAdd(&t->sum, 2);
    atomicMax(&t->most, i);
    atomicMin(&t->least, -static_cast<int>(i));
    atomicOr(&t->bits, 1u << i % 32);
    atomicAdd(&t->wide, 1ull << 33);
    atomicInc(&t->wrapped, 9);
    for (uint32_t seen = t->swaps;;) {
        const uint32_t old = atomicCAS(&t->swaps, seen, seen + 1);
        if (old == seen)
            break;
        seen = old;
    }
}

void atomics_lose_nothing(void **)
{
    const Tallies zero = {};
    DeviceArray<Tallies> t(std::vector<Tallies>{zero});

    launch_well(tally, {dim3(6), dim3(64), 0}, t.get());
    const Tallies got = t.values()[0];
    assert_int_equal(got.sum, 768);
    assert_int_equal(got.most, 383);
    assert_int_equal(got.least, -383);
    assert_int_equal(got.bits, FULL);
    assert_int_equal(got.swaps, 384);
    assert_int_equal(got.wrapped, 384 % 10);
    assert_true(got.wide == 384ull << 33);
}

// ---------------------------------------------------------------- scalar functions

void scalar_functions_are_those_of_cuda(void **)
{
    assert_int_equal(__popc(0xf0f00001u), 9);
    assert_int_equal(__clz(1), 31);
    assert_int_equal(__clz(0), 32);
    assert_int_equal(__ffs(8), 4);
    assert_int_equal(__brev(1u), 0x80000000u);
    assert_int_equal(__brev(0x12345678u), 0x1e6a2c48u);
    assert_int_equal(__umulhi(0xffffffffu, 0xffffffffu), 0xfffffffeu);
    assert_int_equal(__funnelshift_l(0x80000001u, 0x2u, 1), 0x5u);
    assert_int_equal(__funnelshift_r(0x80000001u, 0x3u, 1), 0xc0000000u);
    assert_int_equal(__byte_perm(0x33221100u, 0x77665544u, 0x7531u), 0x77553311u);
    assert_int_equal(__byte_perm(0x33229100u, 0x77665544u, 0x0009u), 0x000000ffu);
    assert_int_equal(__float2int_rn(2.5f), 2);
    assert_int_equal(__float2int_rz(-2.7f), -2);
    assert_int_equal(__float_as_uint(1.0f), 0x3f800000u);
    assert_true(__saturatef(-1.0f) == 0.0f && __saturatef(__uint_as_float(0x7fc00000u)) == 0.0f);
    assert_int_equal(hrk::to_bf16(1.00390625f), 0x3f80); // a tie goes to even
    assert_int_equal(hrk::to_bf16(1.01171875f), 0x3f82);
}

} // namespace

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shuffles_move_what_they_say),
        cmocka_unit_test(votes_see_every_lane),
        cmocka_unit_test(a_warp_sum_has_the_bits_of_its_butterfly),
        cmocka_unit_test(barriers_count_and_order),
        cmocka_unit_test(a_deadlock_names_barriers_lines_and_lanes),
        cmocka_unit_test(a_deadlock_shows_who_is_missing),
        cmocka_unit_test(atomics_lose_nothing),
        cmocka_unit_test(scalar_functions_are_those_of_cuda),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
