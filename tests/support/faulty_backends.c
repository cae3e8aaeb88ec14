/* The CPU backend with faults, for a headrace program of the tests (headrace_faulty): what a dead device looks like
 * from outside. HEADRACE_TEST_FAIL_STEP=N: step N, counted from 0, fails. HEADRACE_TEST_BAD_STEP=N: from step N on
 * every answer's logits are bad.
 */
#include "backend/devices.h"

#include <stdlib.h>

static long fail_step = -1, bad_step = -1, n_steps;

static headrace_status step_begin(hr_backend *backend, hr_batch *batch, headrace_error *err)
{
    long step = n_steps++;

    if (step == fail_step)
        return hr_fail(err, HEADRACE_E_ENGINE, "a fault was injected at step %ld", step);
    HR_PASS(hr_backend_cpu.step_begin(backend, batch, err));
    for (uint32_t i = 0; i < batch->n_outputs && bad_step >= 0 && step >= bad_step; i++)
        batch->samples[i].is_bad = true;
    return HEADRACE_OK;
}

static hr_backend_ops faulty;
const hr_backend_ops *const hr_backends[] = {&faulty, NULL};

static long number_from(const char *name)
{
    const char *text = getenv(name);

    return text ? strtol(text, NULL, 10) : -1;
}

__attribute__((constructor)) static void fill(void)
{
    faulty = hr_backend_cpu;
    faulty.step_begin = step_begin;
    fail_step = number_from("HEADRACE_TEST_FAIL_STEP");
    bad_step = number_from("HEADRACE_TEST_BAD_STEP");
}
