// The device of the runtime stand-in: how many, what they are, names of errors, and starting afresh.
#include <stdio.h>
#include <string.h>

#include "runtime_internal.h"

namespace emu
{

emu_device device = emu_default_device();

namespace
{

thread_local int current;

constexpr int RUNTIME_VERSION = CUDART_VERSION;

struct ErrorText {
    cudaError_t error;
    const char *name, *text;
};
// Those that this runtime returns and those that tests plant.
#define EMU_ERROR(error, text) \
    {                          \
        error, #error, text    \
    }
const ErrorText ERRORS[] = {
    EMU_ERROR(cudaSuccess, "no error"),
    EMU_ERROR(cudaErrorInvalidValue, "invalid argument"),
    EMU_ERROR(cudaErrorMemoryAllocation, "out of memory"),
    EMU_ERROR(cudaErrorInitializationError, "initialization error"),
    EMU_ERROR(cudaErrorCudartUnloading, "driver shutting down"),
    EMU_ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    EMU_ERROR(cudaErrorInvalidMemcpyDirection, "invalid copy direction"),
    EMU_ERROR(cudaErrorInsufficientDriver, "the driver is older than the runtime"),
    EMU_ERROR(cudaErrorInvalidDeviceFunction, "invalid device function"),
    EMU_ERROR(cudaErrorNoDevice, "no CUDA-capable device"),
    EMU_ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    EMU_ERROR(cudaErrorNoKernelImageForDevice, "no kernel image for this device"),
    EMU_ERROR(cudaErrorECCUncorrectable, "uncorrectable ECC error"),
    EMU_ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    EMU_ERROR(cudaErrorIllegalState, "illegal state"),
    EMU_ERROR(cudaErrorNotReady, "not ready"),
    EMU_ERROR(cudaErrorIllegalAddress, "illegal memory access"),
    EMU_ERROR(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    EMU_ERROR(cudaErrorLaunchTimeout, "the launch timed out"),
    EMU_ERROR(cudaErrorHostMemoryAlreadyRegistered, "host memory is registered already"),
    EMU_ERROR(cudaErrorHostMemoryNotRegistered, "host memory is not registered"),
    EMU_ERROR(cudaErrorLaunchFailure, "unspecified launch failure"),
    EMU_ERROR(cudaErrorNotSupported, "operation not supported"),
    EMU_ERROR(cudaErrorStreamCaptureUnsupported, "not permitted while a stream is being captured"),
    EMU_ERROR(cudaErrorStreamCaptureInvalidated, "the capture was invalidated by an earlier error"),
    EMU_ERROR(cudaErrorStreamCaptureMerge, "two captures would merge"),
    EMU_ERROR(cudaErrorStreamCaptureUnmatched, "the capture began in another stream"),
    EMU_ERROR(cudaErrorStreamCaptureUnjoined, "the capture has work that was not joined to its first stream"),
    EMU_ERROR(cudaErrorStreamCaptureIsolation, "a dependency crosses the border of the capture"),
    EMU_ERROR(cudaErrorStreamCaptureImplicit, "the default stream would depend on the capture"),
    EMU_ERROR(cudaErrorCapturedEvent, "the event was recorded in a capture"),
    EMU_ERROR(cudaErrorGraphExecUpdateFailure, "the graph update was not performed"),
    EMU_ERROR(cudaErrorUnknown, "unknown error"),
};
#undef EMU_ERROR

cudaError_t attribute(int *value, cudaDeviceAttr a)
{
    switch (static_cast<int>(a)) {
    case cudaDevAttrComputeCapabilityMajor:
        *value = device.major;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
        *value = device.minor;
        return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
        *value = device.n_sms;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = 48 * 1024;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = shared_memory_max();
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = shared_memory_max() + 1024;
        return cudaSuccess;
    case cudaDevAttrReservedSharedMemoryPerBlock:
        *value = 1024;
        return cudaSuccess;
    case cudaDevAttrMaxThreadsPerBlock:
        *value = 1024;
        return cudaSuccess;
    case cudaDevAttrWarpSize:
        *value = 32;
        return cudaSuccess;
    case cudaDevAttrL2CacheSize:
        *value = 50 << 20;
        return cudaSuccess;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrMemoryPoolsSupported:
        *value = 1;
        return cudaSuccess;
    case cudaDevAttrAsyncEngineCount:
        *value = 2;
        return cudaSuccess;
    case cudaDevAttrIntegrated:
        *value = 0;
        return cudaSuccess;
    default: // a test that needs another one adds it: a made-up number would mislead
        fprintf(stderr, "cuda stand-in: device attribute %d is not known here\n", static_cast<int>(a));
        return fail(cudaErrorInvalidValue);
    }
}

cudaError_t check_ordinal(int ordinal)
{
    return ordinal < 0 || ordinal >= device.n_devices ? fail(cudaErrorInvalidDevice) : cudaSuccess;
}

void forget_everything()
{
    reset_streams();
    reset_graphs();
    reset_copies();
    reset_launches();
    reset_memory();
}

} // namespace

} // namespace emu

using namespace emu;

extern "C" {

emu_device emu_default_device(void)
{
    emu_device d = {};

    d.n_devices = 1;
    d.major = 9;
    d.n_sms = 4;
    d.memory_bytes = size_t(8) << 30;
    snprintf(d.name, sizeof d.name, "Emulated H100");
    return d;
}

void emu_configure(const emu_device *d)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    emu_reset();
    device = d ? *d : emu_default_device();
}

void emu_reset(void)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    forget_everything();
    reset_calls();
    current = 0;
}

size_t emu_n_handles(void)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    return n_stream_handles() + n_graph_handles();
}

cudaError_t cudaGetDeviceCount(int *n)
{
    EMU_CALL(PLAIN);
    *n = device.n_devices;
    return device.n_devices ? cudaSuccess : fail(cudaErrorNoDevice);
}

cudaError_t cudaGetDevice(int *ordinal)
{
    EMU_CALL(PLAIN);
    *ordinal = current;
    return device.n_devices ? cudaSuccess : fail(cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int ordinal)
{
    EMU_CALL(PLAIN);
    if (!device.n_devices)
        return fail(cudaErrorNoDevice);
    if (cudaError_t error = check_ordinal(ordinal))
        return error;
    current = ordinal;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr a, int ordinal)
{
    EMU_CALL(PLAIN);
    cudaError_t error = check_ordinal(ordinal);
    return error ? error : attribute(value, a);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int ordinal)
{
    EMU_CALL(PLAIN);
    if (cudaError_t error = check_ordinal(ordinal))
        return error;
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "%s", device.name);
    p->totalGlobalMem = device.memory_bytes;
    p->major = device.major;
    p->minor = device.minor;
    p->multiProcessorCount = device.n_sms;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->sharedMemPerBlock = 48 * 1024;
    p->sharedMemPerBlockOptin = size_t(shared_memory_max());
    p->sharedMemPerMultiprocessor = p->sharedMemPerBlockOptin + 1024;
    p->reservedSharedMemPerBlock = 1024;
    p->l2CacheSize = 50 << 20;
    p->memoryBusWidth = 5120;
    p->unifiedAddressing = p->concurrentKernels = 1;
    p->asyncEngineCount = 2;
    return cudaSuccess;
}

cudaError_t cudaDeviceReset(void)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    emu::enter(__func__, ALLOCATE);
    forget_everything();
    forgive();
    return cudaSuccess;
}

cudaError_t cudaDeviceSetLimit(cudaLimit, size_t)
{
    EMU_CALL(PLAIN);
    return cudaSuccess;
}

cudaError_t cudaSetDeviceFlags(unsigned)
{
    EMU_CALL(PLAIN);
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    EMU_CALL(PLAIN);
    *version = RUNTIME_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    EMU_CALL(PLAIN);
    *version = RUNTIME_VERSION;
    return cudaSuccess;
}

const char *cudaGetErrorName(cudaError_t error)
{
    for (const ErrorText &e : ERRORS)
        if (e.error == error)
            return e.name;
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error)
{
    for (const ErrorText &e : ERRORS)
        if (e.error == error)
            return e.text;
    return "unrecognized error code";
}

} // extern "C"
