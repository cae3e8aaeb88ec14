// y = 2 x, z = y + w in two kernels, the second launched programmatically; and what becomes of freed memory.
#include "device.h"

namespace planted
{

namespace
{

constexpr uint32_t THREADS = 64, BLOCKS = 3, N = THREADS * BLOCKS;

__global__ void twice(float *y, const float *x)
{
    const uint32_t at = blockIdx.x * THREADS + threadIdx.x;

    prim::griddep_wait();
    const float v = x[at];
    prim::griddep_launch();
    y[at] = 2 * v;
}

template <Fault F> __global__ void add(float *z, const float *y, const float *w)
{
    const uint32_t at = blockIdx.x * THREADS + threadIdx.x;
    const float weight = w[at]; // nobody writes it: may be read before the wait
    float v = 0;

    if (F == READ_BEFORE_WAIT)
        v = y[at]; // reported: READ_BEFORE_WAIT
    if (F == WRITE_BEFORE_WAIT)
        z[at] = 0; // reported: WRITE_BEFORE_WAIT
    if (F != NO_GRIDDEP_WAIT)
        prim::griddep_wait();
    if (F != READ_BEFORE_WAIT)
        v = y[at]; // reported: NO_GRIDDEP_WAIT
    prim::griddep_launch();
    z[at] = v + weight;
}

template <Fault F> struct LaunchAdd {
    static int run(float *z, const float *y, const float *w)
    {
        return hrk::launch(add<F>, {dim3(BLOCKS), dim3(THREADS), 0}, &ON_PROGRAMMATIC, z, y, w);
    }
};

} // namespace

bool run_chain(Fault fault)
{
    const std::vector<float> x(N, 3.0f), w(N, 1.0f);
    DeviceArray<float> d_x(x), d_w(w), d_y(N), d_z(N);
    float *freed = nullptr;

    cudaMalloc(reinterpret_cast<void **>(&freed), N * sizeof(float));
    cudaMemcpy(freed, x.data(), N * sizeof(float), cudaMemcpyHostToDevice);
    if (fault == USE_AFTER_FREE)
        cudaFree(freed);
    int error = hrk::launch(twice, {dim3(BLOCKS), dim3(THREADS), 0}, &ON, d_y.get(),
                            static_cast<const float *>(fault == USE_AFTER_FREE ? freed : d_x.get()));
    if (!error)
        error = launch_one<LaunchAdd, NONE, NO_GRIDDEP_WAIT, READ_BEFORE_WAIT, WRITE_BEFORE_WAIT>(
            fault == USE_AFTER_FREE ? NONE : fault, d_z.get(), d_y.get(), d_w.get());
    const std::vector<float> z = d_z.values();
    if (fault != USE_AFTER_FREE)
        cudaFree(freed);
    if (error || z.empty())
        return false;
    for (float v : z)
        if (v != 7.0f)
            return false;
    return true;
}

} // namespace planted
