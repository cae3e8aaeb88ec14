/* See gpu.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "csrc/backend/cuda/gpu.h"

void gpu_be(int kind)
{
    struct emu_device device = emu_default_device();

    device.major = kind == GPU_FUSED ? 9 : 8;
    device.minor = 0;
    (void)snprintf(device.name, sizeof device.name, "NVIDIA emulated");
    emu_configure(&device);
}

void gpu_check_clean(void)
{
    if (emu_n_violations() > 0)
        fail_msg("%zu violations, the first: %s", emu_n_violations(), emu_violation(0));
    assert_int_equal(emu_n_allocations(), 0);
    assert_int_equal(emu_n_handles(), 0);
}
