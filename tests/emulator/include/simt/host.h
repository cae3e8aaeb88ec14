// What a kernel file sees of CUDA C++ when a host compiler compiles it: what nvcc would have built in.
//
// A block runs on one OS thread at a time and all its CUDA threads are fibers of that OS thread, so "static
// thread_local" is exactly "one per block", and the kernel text stays plain CUDA. Everything that synchronises takes
// the caller's file and line as a default argument, so that a report can name it.
#pragma once

#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <functional>
#include <tuple>
#include <type_traits>

// Static shared variables get a linker section of their own, so that they can be poisoned and watched. (GCC refuses a
// section that holds variables of templates and of plain functions: there they stay among the other thread locals, are
// watched all the same, but not poisoned.)
#undef __shared__
#ifdef __clang__
#define __shared__ static thread_local __attribute__((section("simt_shared")))
#else
#define __shared__ static thread_local
#endif
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __cluster_dims__
#define __cluster_dims__(...)
#undef __grid_constant__
#define __grid_constant__

// Set by the scheduler at every switch. (__thread and a trivial type: no initialisation wrapper at each use.)
extern __thread uint3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

namespace simt
{

// Where in the kernel a call was made.
struct Loc {
    const char *file;
    int line;
    static constexpr Loc here(const char *f = __builtin_FILE(), int l = __builtin_LINE())
    {
        return {f, l};
    }
};

enum CollectiveKind {
    SHUFFLE = 1,
    BALLOT,
    SYNCWARP,
    MATCH,
    REDUCE,
    WARP_SUM,
    WARP_MAX,
    LDMATRIX,
    STMATRIX,
    MMA,
    ELECT,
    SETMAXNREG
};
// The last lane of the mask to arrive performs the collective for all; slot[lane] is what each lane passed.
using CollectiveBody = void (*)(void **slot, uint32_t mask, Loc w);
void warp_collective(CollectiveKind kind, uint32_t mask, void *payload, CollectiveBody body, Loc w);

unsigned char *dyn_smem_base();
void bar_sync(int id, int threads, Loc w); // threads 0: all of the block that have not exited
void bar_arrive(int id, int threads, Loc w);
enum BarReduce { BAR_OR, BAR_AND, BAR_COUNT };
int bar_reduce(BarReduce op, int predicate, Loc w);
uint32_t lane_id();
uint32_t active_warp_mask();
void yield(); // for loops that spin: lets others run
void thread_fence();
uint64_t clock_ns();
[[noreturn]] void trap(const char *message, Loc w);

struct ShuffleRequest {
    uint64_t value, result;
    uint32_t source;
};
void shuffle_body(void **slot, uint32_t mask, Loc w);
template <class T> inline T shuffle(uint32_t mask, T value, uint32_t source, Loc w)
{
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "a shuffle moves up to 8 bytes");
    ShuffleRequest r{0, 0, source};
    memcpy(&r.value, &value, sizeof value);
    warp_collective(SHUFFLE, mask, &r, shuffle_body, w);
    memcpy(&value, &r.result, sizeof value);
    return value;
}
uint32_t ballot(uint32_t mask, bool predicate, Loc w);
uint32_t match_any(uint32_t mask, uint64_t value, Loc w);
enum ReduceOp { REDUCE_ADD, REDUCE_MIN, REDUCE_MAX, REDUCE_MIN_S, REDUCE_MAX_S, REDUCE_AND, REDUCE_OR, REDUCE_XOR };
uint32_t reduce(uint32_t mask, uint32_t value, ReduceOp op, Loc w);

// The launch, provided by the runtime stand-in. Arguments are copied at launch, as the CUDA runtime does.
cudaError_t enqueue_launch(const cudaLaunchConfig_t *launch, const void *function, std::function<void()> body);
template <class... P, class... A>
inline cudaError_t launch_kernel_ex(const cudaLaunchConfig_t *launch, void (*kernel)(P...), A &&...a)
{
    return enqueue_launch(
        launch, reinterpret_cast<const void *>(kernel),
        [kernel, arguments = std::tuple<std::decay_t<P>...>(a...)]() { std::apply(kernel, arguments); });
}

} // namespace simt

#define cudaLaunchKernelEx ::simt::launch_kernel_ex
template <class... P> inline cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute a, int v)
{
    return cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), a, v);
}

inline unsigned char *dyn_smem()
{
    return simt::dyn_smem_base();
}

#define SIMT_HERE simt::Loc w = simt::Loc::here()

#include "simt/host_warp.h"
#include "simt/host_scalar.h"
