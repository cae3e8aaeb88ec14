// y = x / rms(x) by rows: a sum over warps, then over the block through static shared memory.
#include "device.h"

namespace planted
{

namespace
{

constexpr uint32_t THREADS = 128, ROWS = 3;

template <Fault F> __device__ float sum_of_warp(float x)
{
    const uint32_t mask = F == MASK_MISSES_LANE ? 0x7fffffffu : 0xffffffffu;

    for (int lanes = F == SHORT_BUTTERFLY ? 8 : 16; lanes > 0; lanes /= 2)
        x += __shfl_xor_sync(mask, x, lanes); // reported: MASK_MISSES_LANE
    return x;
}

template <Fault F> __global__ void __launch_bounds__(THREADS) reduce(float *y, const float *x)
{
    __shared__ float partial[THREADS / 32], turned[THREADS];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, at = blockIdx.x * THREADS + threadIdx.x;
    float sum = x[at] * x[at];

    if (F == LANE_MISSING && lane == 7)
        ; // goes on to the barrier
    else
        sum = sum_of_warp<F>(sum);
    if (lane == 0)
        partial[warp] = sum;
    if (F != NO_SYNCTHREADS && (F != BARRIER_IN_BRANCH || warp != 2))
        __syncthreads();
    float total = 0;
    for (uint32_t i = 0; i < THREADS / 32; i++)
        total += partial[i]; // reported: NO_SYNCTHREADS
    turned[threadIdx.x] = x[at] * rsqrtf(total / THREADS);
    if (F != NO_SYNCWARP)
        __syncwarp();
    y[at] = turned[threadIdx.x ^ 31]; // reported: NO_SYNCWARP
    if (F == BARRIER_IN_BRANCH)
        __syncthreads();
}

template <Fault F> struct LaunchReduce {
    static int run(float *y, const float *x)
    {
        return hrk::launch(reduce<F>, {dim3(ROWS), dim3(THREADS), 0}, &ON, y, x);
    }
};

} // namespace

bool run_reduce(Fault fault)
{
    std::vector<float> x(ROWS * THREADS);
    uint32_t state = 6;

    for (float &v : x)
        v = next_random(&state);
    DeviceArray<float> d_x(x), d_y(x.size());
    const int error = launch_one<LaunchReduce, NONE, NO_SYNCTHREADS, NO_SYNCWARP, LANE_MISSING, MASK_MISSES_LANE,
                                 SHORT_BUTTERFLY, BARRIER_IN_BRANCH>(fault, d_y.get(), d_x.get());
    const std::vector<float> y = d_y.values();
    if (error || y.empty())
        return false;
    for (uint32_t row = 0; row < ROWS; row++) {
        double sum = 0;
        for (uint32_t i = 0; i < THREADS; i++)
            sum += static_cast<double>(x[row * THREADS + i]) * x[row * THREADS + i];
        for (uint32_t i = 0; i < THREADS; i++)
            if (!is_close(y[row * THREADS + (i ^ 31)], x[row * THREADS + i] / static_cast<float>(sqrt(sum / THREADS)),
                          1e-5f))
                return false;
    }
    return true;
}

} // namespace planted
