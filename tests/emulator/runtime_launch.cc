// Kernel launches of the runtime stand-in: checked as the driver would, traced, and run by the emulation in their turn.
#include <string.h>
#include <algorithm>

#include "runtime_internal.h"
#include "simt.h"

namespace emu
{

namespace
{

constexpr size_t TRACE_MAX = 1000000;
constexpr size_t DEFAULT_SHARED = 48 * 1024;

std::map<const void *, int> shared_limits; // cudaFuncSetAttribute
std::map<const void *, std::string> names; // map: what emu_launch.name points to stays where it is
std::vector<emu_launch> trace;
uint64_t n_grids; // run so far: the last one's number

struct Shape {
    dim3 grid, block, cluster = dim3(1, 1, 1);
    size_t smem = 0;
    bool is_programmatic = false;
};

const char *name_of(const void *function)
{
    auto found = names.find(function);

    if (found == names.end())
        found = names.emplace(function, simt::symbol_name(function)).first;
    return found->second.c_str();
}

uint64_t volume(dim3 d)
{
    return uint64_t(d.x) * d.y * d.z;
}

cudaError_t check_shape(const Shape &s, const void *function)
{
    if (!volume(s.block) || volume(s.block) > 1024 || s.block.z > 64)
        return cudaErrorInvalidConfiguration;
    if (!volume(s.grid) || s.grid.x > 0x7fffffff || s.grid.y > 65535 || s.grid.z > 65535)
        return cudaErrorInvalidConfiguration;
    if (!volume(s.cluster) || volume(s.cluster) > 8 || s.grid.x % s.cluster.x || s.grid.y % s.cluster.y ||
        s.grid.z % s.cluster.z)
        return cudaErrorInvalidConfiguration;
    if ((volume(s.cluster) > 1 || s.is_programmatic) && device.major < 9)
        return cudaErrorNotSupported;
    auto limit = shared_limits.find(function);
    return s.smem > (limit == shared_limits.end() ? DEFAULT_SHARED : size_t(limit->second)) ? cudaErrorInvalidValue
                                                                                            : cudaSuccess;
}

void run_kernel(const Shape &s, const char *name, const std::function<void()> &body, Stream &stream)
{
    if (trace.size() < TRACE_MAX)
        trace.push_back({name,
                         {s.grid.x, s.grid.y, s.grid.z},
                         {s.block.x, s.block.y, s.block.z},
                         {s.cluster.x, s.cluster.y, s.cluster.z},
                         s.smem,
                         s.is_programmatic,
                         stream.is_in_graph,
                         stream.handle()});
    if (skips_kernels)
        return;
    bool follows = s.is_programmatic && stream.last_grid && stream.last_grid == n_grids;
    simt::run_grid(s.grid, s.block, s.smem, s.cluster, name, body, follows);
    stream.last_grid = ++n_grids;
    if (simt::failed_last_grid())
        set_sticky(cudaErrorLaunchFailure);
}

cudaError_t set_attribute(const void *function, cudaFuncAttribute attribute, int value)
{
    if (!function)
        return fail(cudaErrorInvalidDeviceFunction);
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        if (value < 0 || value > shared_memory_max())
            return fail(cudaErrorInvalidValue);
        shared_limits[function] = value;
    }
    return cudaSuccess;
}

// Registers are not known here: what threads and shared memory allow.
int blocks_per_sm(int threads, size_t smem)
{
    int shared_per_sm = shared_memory_max() + 1024, by_shared = shared_per_sm / static_cast<int>(smem + 1024);
    return std::min({32, (device.major == 8 && device.minor > 0 ? 1536 : 2048) / threads, by_shared});
}

cudaError_t occupancy(int *blocks, const void *function, int threads, size_t smem)
{
    if (!function || threads < 1 || threads > 1024)
        return fail(cudaErrorInvalidValue);
    *blocks = smem > size_t(shared_memory_max()) ? 0 : blocks_per_sm(threads, smem);
    return cudaSuccess;
}

} // namespace

void clear_trace()
{
    trace.clear();
}

void reset_launches()
{
    trace.clear();
    shared_limits.clear();
}

int shared_memory_max()
{
    int capability = device.major * 10 + device.minor;

    if (capability >= 90)
        return 227 * 1024;
    return capability == 80 || capability == 87 ? 163 * 1024 : 99 * 1024;
}

} // namespace emu

using namespace emu;

namespace simt
{

cudaError_t enqueue_launch(const cudaLaunchConfig_t *asked, const void *function, std::function<void()> body)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (cudaError_t error = enter("cudaLaunchKernelEx", PLAIN))
        return error;
    std::shared_ptr<Stream> stream = find_stream(asked->stream);
    Shape shape;

    if (!stream)
        return fail(cudaErrorInvalidResourceHandle);
    shape.grid = asked->gridDim;
    shape.block = asked->blockDim;
    shape.smem = asked->dynamicSmemBytes;
    for (unsigned i = 0; i < asked->numAttrs; i++) {
        const cudaLaunchAttribute &a = asked->attrs[i];
        if (a.id == cudaLaunchAttributeClusterDimension)
            shape.cluster = dim3(a.val.clusterDim.x, a.val.clusterDim.y, a.val.clusterDim.z);
        else if (a.id == cudaLaunchAttributeProgrammaticStreamSerialization)
            shape.is_programmatic = a.val.programmaticStreamSerializationAllowed != 0;
    }
    if (cudaError_t error = check_shape(shape, function))
        return fail(error);
    const char *name = name_of(function);
    auto shared_body = std::make_shared<std::function<void()>>(std::move(body));
    Work work;
    work.kind = KERNEL_NODE;
    work.function = function;
    work.prepare = [=]() -> Runner { return [=](Stream &s) { run_kernel(shape, name, *shared_body, s); }; };
    return submit_work(stream, std::move(work));
}

} // namespace simt

extern "C" {

size_t emu_n_launches(void)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    return trace.size();
}

emu_launch emu_launch_at(size_t i)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    return trace.at(i);
}

void emu_clear_trace(void)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    clear_trace();
}

cudaError_t cudaFuncSetAttribute(const void *function, cudaFuncAttribute attribute, int value)
{
    EMU_CALL(PLAIN);
    return set_attribute(function, attribute, value);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *function)
{
    EMU_CALL(PLAIN);
    if (!function)
        return fail(cudaErrorInvalidDeviceFunction);
    auto limit = shared_limits.find(function);
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->maxDynamicSharedSizeBytes =
        limit == shared_limits.end() ? static_cast<int>(DEFAULT_SHARED) : limit->second;
    attributes->binaryVersion = attributes->ptxVersion = device.major * 10 + device.minor;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function, int threads, size_t smem)
{
    EMU_CALL(PLAIN);
    return occupancy(blocks, function, threads, smem);
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function, int threads,
                                                                   size_t smem, unsigned)
{
    EMU_CALL(PLAIN);
    return occupancy(blocks, function, threads, smem);
}

} // extern "C"
