/* What a failed call means, and what happens after one.
 *
 * A fault on the device is found by a later call than the one that caused it, and nothing on the device can be trusted
 * afterwards. So the first failure is kept word for word, the instance is broken from then on, and every later step
 * repeats the message instead of running into the next fault.
 */
#include "backend/cuda/cuda.h"

#include <inttypes.h>
#include <string.h>

static void keep(hr_cuda *cuda, const char *call, const char *name, const char *meaning)
{
    char step[48] = "before the first step";

    if (cuda->n_steps > 0)
        (void)snprintf(step, sizeof step, "in step %" PRIu64, cuda->n_steps);
    cuda->is_broken = true;
    (void)snprintf(cuda->failure, sizeof cuda->failure, "%.*s failed %s on GPU %u (%s): %s (%s)",
                   (int)strcspn(call, "("), call, step, cuda->device.index, cuda->device.name, meaning, name);
}

headrace_status hr_cuda_check(hr_cuda *cuda, int code, const char *call, headrace_error *err)
{
    if (code == cudaSuccess)
        return HEADRACE_OK;
    (void)cudaGetLastError(); /* so that it is not found again by somebody else's call */
    if (!cuda->is_broken)
        keep(cuda, call, cudaGetErrorName((cudaError_t)code), cudaGetErrorString((cudaError_t)code));
    return hr_fail(err, cuda->n_steps == 0 && code == cudaErrorMemoryAllocation ? HEADRACE_E_MEMORY : HEADRACE_E_ENGINE,
                   "%s", cuda->failure);
}

headrace_status hr_cuda_check_whole(const hr_cuda *cuda, headrace_error *err)
{
    if (!cuda->is_broken)
        return HEADRACE_OK;
    return hr_fail(err, HEADRACE_E_ENGINE, "the GPU cannot be used any more: %s", cuda->failure);
}
