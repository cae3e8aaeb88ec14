/* The CUDA backend on the emulated device, for a headrace program of the tests (headrace_emulated): everything of
 * `--device cuda` but the GPU. HEADRACE_TEST_CUDA_FAULT=CALL:N makes the Nth call of that name after the engine has
 * opened fail as after a fault on the device, and every later call with it.
 */
#include "backend/cuda/cuda_backend.h"
#include "backend/devices.h"
#include "runtime.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

static void arm_fault(void)
{
    static char call[64];
    const char *text = getenv("HEADRACE_TEST_CUDA_FAULT"), *colon = text ? strchr(text, ':') : NULL;

    if (!colon || (size_t)(colon - text) >= sizeof call)
        return;
    memcpy(call, text, (size_t)(colon - text));
    emu_clear_calls();
    emu_fault(call, (uint32_t)strtoul(colon + 1, NULL, 10), cudaErrorIllegalAddress, true);
}

static headrace_status open_and_arm(const hr_model *model, const hr_backend_options *options, uint32_t n_pages,
                                    uint32_t n_slots, hr_backend **out, headrace_error *err)
{
    headrace_status status = hr_backend_cuda.open(model, options, n_pages, n_slots, out, err);

    if (status == HEADRACE_OK)
        arm_fault();
    return status;
}

static hr_backend_ops emulated;
const hr_backend_ops *const hr_backends[] = {&emulated, &hr_backend_cpu, NULL};

__attribute__((constructor)) static void fill(void)
{
    emulated = hr_backend_cuda;
    emulated.open = open_and_arm;
}
