/* Every call of the CUDA runtime fails once, in turn, as the nth of its name: opening, and each step, must report it
 * (or get on without, where only cleaning up failed), nothing may be left behind or hang, and an instance that failed
 * stays failed. Kernels are skipped: this is about the host. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <driver_types.h>

#include "csrc/backend/cuda/gpu.h"
#include "csrc/backend/driver.h"
#include "csrc/backend/random_model.h"

enum { CALLS_MAX = 64, STEPS = 3, PROMPT = 3 };

static hr_model *model;

static int set_up(void **state)
{
    random_model_options o = random_model_defaults();

    (void)state;
    o.pattern = "ca";
    o.head_dim = 64;
    o.hidden_size = 64;
    o.n_experts = o.n_experts_used = 2;
    o.expert_ffn_dim = 32;
    o.n_dense_layers = 1;
    model = random_model_create(&o);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    random_model_destroy(model);
    return 0;
}

/* What became of one life of an instance. */
typedef struct outcome {
    headrace_status open, step;
    char message[512];
} outcome;

static void fill(hr_batch *batch, uint32_t step)
{
    static const hr_sampling_params sampling = {.top_p = 1, .repetition_penalty = 1.1f};
    static const int32_t ids[PROMPT + STEPS] = {1, 2, 3};
    uint32_t n = step == 0 ? PROMPT : 1, start = step == 0 ? 0 : PROMPT + step - 1;

    batch->n_rows = n;
    batch->n_spans = batch->n_outputs = batch->n_page_refs = 1;
    batch->pages[0] = 1;
    batch->spans[0] = (hr_span){
        .n_rows = n, .start_position = start, .n_pages = 1, .sequence = 1, .n_prompt = PROMPT, .is_fresh = step == 0};
    for (uint32_t i = 0; i < n; i++)
        batch->token_ids[i] = step == 0 ? ids[i] : HR_TOKEN_FROM_SLOT;
    batch->outputs[0] =
        (hr_output){.row = n - 1,
                    .sampling = &sampling,
                    .history = {.ids = ids, .n_prompt = PROMPT, .n_total = start + n, .n_pending = step > 0},
                    .n_logprobs = 2,
                    .score_id = -1};
}

static headrace_status run_steps(hr_backend *backend, headrace_error *err)
{
    const hr_backend_ops *ops = backend->ops;

    for (uint32_t i = 0; i <= STEPS; i++) {
        if (i < STEPS) {
            fill(ops->batch(backend, i % 2), i);
            HR_PASS(ops->step_begin(backend, ops->batch(backend, i % 2), err));
        }
        if (i > 0)
            HR_PASS(ops->step_wait(backend, err));
        if (i + 1 < STEPS) { /* what fails in here, the next step tells */
            ops->copy_page(backend, 1, 2);
            ops->copy_slot(backend, 0, 1);
        }
    }
    return HEADRACE_OK;
}

static outcome live(void)
{
    hr_backend_options options = {
        .page_tokens = 16, .max_rows = 4, .max_spans = 2, .max_outputs = 2, .max_page_refs = 4};
    outcome out = {.step = HEADRACE_OK};
    headrace_error err = {0};
    hr_backend *backend = NULL;

    out.open = hr_backend_cuda.open(model, &options, 4, 2, &backend, &err);
    if (out.open == HEADRACE_OK) {
        out.step = run_steps(backend, &err);
        if (out.step != HEADRACE_OK) {
            headrace_error again = {0};

            fill(hr_backend_cuda.batch(backend, 0), 0);
            assert_int_equal(hr_backend_cuda.step_begin(backend, hr_backend_cuda.batch(backend, 0), &again),
                             HEADRACE_E_ENGINE);
            assert_non_null(strstr(again.message, "cannot be used any more"));
        }
        hr_backend_cuda.close(backend);
    } else {
        assert_null(backend);
    }
    (void)snprintf(out.message, sizeof out.message, "%s", err.message);
    return out;
}

/* A fresh device that fails at the nth call of that name. */
static outcome live_with(const char *call, uint32_t nth, int error, bool is_sticky)
{
    outcome out;

    gpu_be(GPU_FUSED);
    emu_skip_kernels(true);
    emu_clear_calls();
    emu_fault(call, nth, error, is_sticky);
    out = live();
    if (!emu_fault_happened())
        fail_msg("%s was not called %u times", call, nth);
    emu_fault(NULL, 0, 0, false);
    return out;
}

typedef struct call_count {
    const char *name;
    uint32_t n;
} call_count;

/* Names of the calls of a life without faults, and how often each is made. */
static uint32_t count_calls(call_count *counts)
{
    uint32_t n = 0;
    outcome clean;

    gpu_be(GPU_FUSED);
    emu_skip_kernels(true);
    emu_clear_calls();
    clean = live();
    assert_int_equal(clean.open, HEADRACE_OK);
    if (clean.step != HEADRACE_OK)
        fail_msg("%s", clean.message);
    gpu_check_clean();
    for (size_t i = 0; i < emu_n_calls(); i++) {
        uint32_t at = 0;

        while (at < n && strcmp(counts[at].name, emu_call(i)) != 0)
            at++;
        if (at == n) {
            assert_true(n < CALLS_MAX);
            counts[n++] = (call_count){.name = emu_call(i)};
        }
        counts[at].n++;
    }
    return n;
}

/* A failure of these means that something could not be given back, or that an old error could not be looked at: there
 * is nobody to tell. */
static bool only_cleans_up(const char *call)
{
    return strstr(call, "Free") || strstr(call, "Destroy") || strcmp(call, "cudaGetLastError") == 0;
}

/* These say what they know when something else failed. */
static bool only_explains(const char *call)
{
    return strcmp(call, "cudaGetErrorName") == 0 || strcmp(call, "cudaGetErrorString") == 0;
}

static void every_call_may_fail_once(void **state)
{
    call_count counts[CALLS_MAX];
    uint32_t n = count_calls(counts), n_lives = 0;

    (void)state;
    for (uint32_t c = 0; c < n; c++) {
        for (uint32_t nth = 1; nth <= counts[c].n && !only_explains(counts[c].name); nth++, n_lives++) {
            outcome out = live_with(counts[c].name, nth, cudaErrorUnknown, false);
            bool failed = out.open != HEADRACE_OK || out.step != HEADRACE_OK;
            bool closing = strcmp(counts[c].name, "cudaStreamSynchronize") == 0 && nth == counts[c].n;

            closing |= strcmp(counts[c].name, "cudaSetDevice") == 0 && nth == counts[c].n;
            if (!failed && !only_cleans_up(counts[c].name) && !closing)
                fail_msg("call %u of %s failed and nobody was told", nth, counts[c].name);
            if (failed && strlen(out.message) == 0)
                fail_msg("call %u of %s failed without a message", nth, counts[c].name);
            if (emu_n_violations() > 0)
                fail_msg("call %u of %s: %s", nth, counts[c].name, emu_violation(0));
            if (!only_cleans_up(counts[c].name) && (emu_n_allocations() > 0 || emu_n_handles() > 0))
                fail_msg("call %u of %s: %zu allocations and %zu handles were left behind", nth, counts[c].name,
                         emu_n_allocations(), emu_n_handles());
        }
    }
    assert_true(n > 15 && n_lives > 100);
}

/* As after a fault on the device: every later call fails, too. */
static void a_dead_device_is_reported_and_let_go(void **state)
{
    static const char *const calls[] = {"cudaMemcpyAsync",       "cudaEventSynchronize", "cudaGraphLaunch",
                                        "cudaStreamSynchronize", "cudaEventRecord",      "cudaLaunchKernelEx"};
    call_count counts[CALLS_MAX];
    uint32_t n = count_calls(counts);

    (void)state;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        for (uint32_t c = 0; c < n; c++) {
            if (strcmp(counts[c].name, calls[i]) != 0)
                continue;
            for (uint32_t nth = 1; nth <= counts[c].n; nth += nth < counts[c].n / 2 ? 5 : 1) {
                outcome out = live_with(calls[i], nth, cudaErrorIllegalAddress, true);
                bool closing = strcmp(calls[i], "cudaStreamSynchronize") == 0 && nth == counts[c].n;

                if (out.open == HEADRACE_OK && out.step == HEADRACE_OK && !closing)
                    fail_msg("call %u of %s: the dead device was not noticed", nth, calls[i]);
            }
        }
    }
}

static void a_message_names_call_step_and_device(void **state)
{
    outcome out;

    (void)state;
    out = live_with("cudaGraphLaunch", 2, cudaErrorIllegalAddress, true);
    assert_int_equal(out.open, HEADRACE_OK);
    assert_int_equal(out.step, HEADRACE_E_ENGINE);
    assert_string_equal(out.message, "cudaGraphLaunch failed in step 2 on GPU 0 (emulated): illegal memory access "
                                     "(cudaErrorIllegalAddress)");
}

static void memory_that_runs_out_is_told_as_such(void **state)
{
    outcome out;

    (void)state;
    out = live_with("cudaMalloc", 1, cudaErrorMemoryAllocation, false);
    assert_int_equal(out.open, HEADRACE_E_MEMORY);
    out = live_with("cudaMallocHost", 1, cudaErrorMemoryAllocation, false);
    assert_int_equal(out.open, HEADRACE_E_MEMORY);
    assert_non_null(strstr(out.message, "cudaMallocHost"));
}

static void a_driver_that_is_too_old_is_told_as_such(void **state)
{
    outcome out;

    (void)state;
    out = live_with("cudaGetDeviceCount", 1, cudaErrorInsufficientDriver, false);
    assert_int_equal(out.open, HEADRACE_E_UNSUPPORTED);
    assert_non_null(strstr(out.message, "driver is too old"));
    out = live_with("cudaGetDeviceCount", 1, cudaErrorNoDevice, false);
    assert_int_equal(out.open, HEADRACE_E_UNSUPPORTED);
    assert_non_null(strstr(out.message, "no NVIDIA GPU"));
}

static void a_device_without_kernels_is_told_what_to_build(void **state)
{
    outcome out;

    (void)state;
    out = live_with("cudaFuncGetAttributes", 1, cudaErrorNoKernelImageForDevice, false);
    assert_int_equal(out.open, HEADRACE_E_UNSUPPORTED);
    assert_string_equal(out.message, "GPU 0 (emulated) has compute capability 9.0, and this program has no kernels for "
                                     "it: build it with -DHEADRACE_CUDA_ARCHS=90a");
}

/* What a graph needs of the device is taken at open, where running out is told, and not in the first step of its class.
 */
static void graphs_are_on_the_device_before_the_first_step(void **state)
{
    outcome out;

    (void)state;
    out = live_with("cudaGraphUpload", 2, cudaErrorMemoryAllocation, false);
    assert_int_equal(out.open, HEADRACE_E_MEMORY);
    assert_int_equal(emu_count("cudaGraphUpload"), 2);
    assert_int_equal(emu_count("cudaGraphInstantiate"), 2);
}

/* Loading may wait for the device, which a recording must not. */
static void kernels_are_loaded_before_they_are_recorded(void **state)
{
    uint32_t n_loaded = 0, n_recorded = 0, n_graphs = 0;
    bool is_recording = false;

    (void)state;
    (void)live_with("cudaGraphUpload", 3, cudaErrorMemoryAllocation, false);
    for (size_t i = 0; i < emu_n_calls(); i++) {
        const char *call = emu_call(i);

        if (strcmp(call, "cudaFuncGetAttributes") == 0) {
            assert_false(is_recording);
            n_loaded++;
        } else if (strcmp(call, "cudaStreamBeginCapture") == 0) {
            is_recording = true;
        } else if (strcmp(call, "cudaStreamEndCapture") == 0) {
            assert_true(n_recorded > 0);
            assert_true(n_loaded >= n_recorded); /* one by one, by the same walk; the probe asks for one more */
            n_loaded = n_recorded = 0;
            n_graphs++;
            is_recording = false;
        } else if (strcmp(call, "cudaLaunchKernelEx") == 0) {
            n_recorded += is_recording;
        }
    }
    assert_int_equal(n_graphs, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_call_may_fail_once),
        cmocka_unit_test(a_dead_device_is_reported_and_let_go),
        cmocka_unit_test(a_message_names_call_step_and_device),
        cmocka_unit_test(memory_that_runs_out_is_told_as_such),
        cmocka_unit_test(a_driver_that_is_too_old_is_told_as_such),
        cmocka_unit_test(a_device_without_kernels_is_told_what_to_build),
        cmocka_unit_test(graphs_are_on_the_device_before_the_first_step),
        cmocka_unit_test(kernels_are_loaded_before_they_are_recorded),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
