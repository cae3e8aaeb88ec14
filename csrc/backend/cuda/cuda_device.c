/* Which device, and whether it can be used. Every answer a user may meet on a machine without a fitting GPU comes from
 * here, so each says what was found and what would be right.
 */
#include "backend/cuda/cuda.h"

#include <string.h>

enum { MAJOR_MIN = 8 };

static headrace_status explain(cudaError_t code, uint32_t index, const char *call, headrace_error *err)
{
    int driver = 0, runtime = 0;

    (void)cudaGetLastError();
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    if (code == cudaErrorNoDevice)
        return hr_fail(err, HEADRACE_E_UNSUPPORTED, "there is no NVIDIA GPU that this process can see");
    if (driver == 0)
        return hr_fail(err, HEADRACE_E_UNSUPPORTED,
                       "there is no NVIDIA driver on this machine; CUDA %d.%d needs one (%s)", runtime / 1000,
                       runtime % 1000 / 10, cudaGetErrorString(code));
    if (code == cudaErrorInsufficientDriver || driver / 1000 < runtime / 1000)
        return hr_fail(err, HEADRACE_E_UNSUPPORTED,
                       "the NVIDIA driver is too old: it knows CUDA %d.%d, this program was built for %d.%d",
                       driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    return hr_fail(err, HEADRACE_E_UNSUPPORTED, "GPU %u cannot be used: %s: %s (%s)", index, call,
                   cudaGetErrorString(code), cudaGetErrorName(code));
}

#define TRY(call)                                     \
    do {                                              \
        cudaError_t code_ = (call);                   \
        if (code_ != cudaSuccess)                     \
            return explain(code_, index, #call, err); \
    } while (0)

/* "NVIDIA H100 80GB HBM3" -> "H100 80GB HBM3". */
static void copy_name(const char *from, hr_cuda_device *out)
{
    static const char maker[] = "NVIDIA ";

    if (strncmp(from, maker, sizeof maker - 1) == 0)
        from += sizeof maker - 1;
    (void)snprintf(out->name, sizeof out->name, "%s", from);
}

static headrace_status read_properties(uint32_t index, hr_cuda_device *out, headrace_error *err)
{
    struct cudaDeviceProp properties;
    int n_sms = 0;

    TRY(cudaGetDeviceProperties(&properties, (int)index));
    TRY(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, (int)index));
    TRY(cudaDeviceGetAttribute(&out->major, cudaDevAttrComputeCapabilityMajor, (int)index));
    TRY(cudaDeviceGetAttribute(&out->minor, cudaDevAttrComputeCapabilityMinor, (int)index));
    copy_name(properties.name, out);
    out->n_sms = (uint32_t)n_sms;
    if (out->major < MAJOR_MIN)
        return hr_fail(err, HEADRACE_E_UNSUPPORTED,
                       "GPU %u (%s) has compute capability %d.%d; %d.0 (Ampere) or later is needed", index, out->name,
                       out->major, out->minor, MAJOR_MIN);
    return HEADRACE_OK;
}

/* The program has kernels for the architectures it was compiled for and no others. */
static headrace_status check_kernels(uint32_t index, const hr_cuda_device *device, headrace_error *err)
{
    int code = hrk_check_device();

    if (code != cudaErrorNoKernelImageForDevice && code != cudaErrorInvalidDeviceFunction) {
        TRY((cudaError_t)code);
        return HEADRACE_OK;
    }
    (void)cudaGetLastError();
    return hr_fail(err, HEADRACE_E_UNSUPPORTED,
                   "GPU %u (%s) has compute capability %d.%d, and this program has no kernels for it: build it with "
                   "-DHEADRACE_CUDA_ARCHS=%d%d%s",
                   index, device->name, device->major, device->minor, device->major, device->minor,
                   device->major == 9 ? "a" : "");
}

headrace_status hr_cuda_probe(uint32_t index, hr_cuda_device *out, headrace_error *err)
{
    size_t free_bytes = 0, total_bytes = 0;
    int n = 0;

    *out = (hr_cuda_device){.index = index};
    TRY(cudaGetDeviceCount(&n));
    if (n <= 0)
        return explain(cudaErrorNoDevice, index, "cudaGetDeviceCount", err);
    if (index >= (uint32_t)n)
        return hr_fail(err, HEADRACE_E_UNSUPPORTED, "there is no GPU %u: this machine has %d, counted from 0", index,
                       n);
    HR_PASS(read_properties(index, out, err));
    TRY(cudaSetDevice((int)index));
    HR_PASS(check_kernels(index, out, err));
    TRY(cudaMemGetInfo(&free_bytes, &total_bytes));
    out->free_bytes = free_bytes;
    out->total_bytes = total_bytes;
    return HEADRACE_OK;
}
