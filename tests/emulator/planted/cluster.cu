// Two blocks of a cluster exchange their halves through distributed shared memory.
#include "device.h"

namespace planted
{

namespace
{

constexpr uint32_t THREADS = 64, BLOCKS = 4;

struct Shared {
    float values[THREADS];
    uint64_t was_read;
};

template <Fault F> __global__ void exchange(float *out, const float *in)
{
    Shared &s = *reinterpret_cast<Shared *>(dyn_smem());
    const uint32_t at = blockIdx.x * THREADS + threadIdx.x, peer = F == WRONG_PEER ? 0 : prim::cluster_rank() ^ 1;

    if (threadIdx.x == 0) {
        prim::mbar_init(&s.was_read, THREADS);
        prim::fence_mbar_init();
    }
    s.values[threadIdx.x] = in[at];
    if (F != NO_CLUSTER_BARRIER) {
        prim::cluster_arrive();
        prim::cluster_wait();
    } else {
        __syncthreads();
    }
    const float v = prim::cluster_map(s.values, peer)[threadIdx.x]; // reported: NO_CLUSTER_BARRIER
    if (F != EXIT_BEFORE_PEER) {
        prim::mbar_arrive_cluster(&s.was_read, peer);
        prim::mbar_wait(&s.was_read, 0);
        s.values[threadIdx.x] = 0.0f;
    }
    out[at] = v;
    if (F != EXIT_BEFORE_PEER) {
        prim::cluster_arrive();
        prim::cluster_wait();
    }
}

template <Fault F> struct LaunchExchange {
    static int run(float *out, const float *in)
    {
        return hrk::launch(exchange<F>, {dim3(BLOCKS), dim3(THREADS), sizeof(Shared), 2}, &ON, out, in);
    }
};

} // namespace

bool run_cluster(Fault fault)
{
    std::vector<float> in(BLOCKS * THREADS);

    for (uint32_t i = 0; i < in.size(); i++)
        in[i] = static_cast<float>(i);
    DeviceArray<float> d_in(in), d_out(in.size());
    const int error = launch_one<LaunchExchange, NONE, NO_CLUSTER_BARRIER, WRONG_PEER, EXIT_BEFORE_PEER>(
        fault, d_out.get(), d_in.get());
    const std::vector<float> out = d_out.values();
    if (error || out.empty())
        return false;
    for (uint32_t i = 0; i < out.size(); i++)
        if (out[i] != in[i ^ THREADS])
            return false;
    return true;
}

} // namespace planted
