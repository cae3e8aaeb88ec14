/* What a test program does differently on a real GPU.
 *
 * It first looks for the GPU and says what is wrong if there is none that these tests are for (exit 3), instead of
 * failing test by test. And it answers the questions that the tests of csrc/backend/cuda put to the emulated runtime
 * (tests/emulator/runtime.h), as far as they can be answered by counting the program's own calls: the linker routes
 * those in GPU_WRAPPED of gpu_tests.cmake through this file. A launch counts as one of a graph when it was captured.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <cuda_runtime_api.h>

#include "csrc/backend/cuda/gpu.h"

enum { LAUNCHES_MAX = 1 << 20, TESTS_MAX = 64, NO_DEVICE = 3 };

/* Tests about devices other than the one that is there; a real runtime cannot be told to be them. */
static const char *const LEFT_OUT[] = {"what_a_gpu_cannot_do_is_said", "too_little_memory_says_what_fits"};

static size_t n_allocations, n_violations, n_launches;
static struct emu_launch launches[LAUNCHES_MAX];
static bool is_guarded;

/* ---------------------------------------------------------------- the calls that are counted */

cudaError_t __real_cudaMalloc(void **p, size_t n);
cudaError_t __real_cudaFree(void *p);
cudaError_t __real_cudaMallocHost(void **p, size_t n);
cudaError_t __real_cudaFreeHost(void *p);
cudaError_t __real_cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **args);
int __real__cmocka_run_group_tests(const char *name, const struct CMUnitTest *tests, size_t n, CMFixtureFunction set_up,
                                   CMFixtureFunction tear_down);
cudaError_t __wrap_cudaMalloc(void **p, size_t n);
cudaError_t __wrap_cudaFree(void *p);
cudaError_t __wrap_cudaMallocHost(void **p, size_t n);
cudaError_t __wrap_cudaFreeHost(void *p);
cudaError_t __wrap_cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **args);
int __wrap__cmocka_run_group_tests(const char *name, const struct CMUnitTest *tests, size_t n, CMFixtureFunction set_up,
                                   CMFixtureFunction tear_down);

static cudaError_t allocated(cudaError_t code)
{
    n_allocations += code == cudaSuccess;
    n_violations += is_guarded;
    return code;
}

static cudaError_t released(const void *p, cudaError_t code)
{
    n_allocations -= p && code == cudaSuccess;
    n_violations += p && is_guarded;
    return code;
}

cudaError_t __wrap_cudaMalloc(void **p, size_t n)
{
    return allocated(__real_cudaMalloc(p, n));
}

cudaError_t __wrap_cudaMallocHost(void **p, size_t n)
{
    return allocated(__real_cudaMallocHost(p, n));
}

cudaError_t __wrap_cudaFree(void *p)
{
    return released(p, __real_cudaFree(p));
}

cudaError_t __wrap_cudaFreeHost(void *p)
{
    return released(p, __real_cudaFreeHost(p));
}

cudaError_t __wrap_cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **args)
{
    enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    const char *name = "?";

    if (n_launches < LAUNCHES_MAX) {
        /* A stream that cannot be asked makes the launch fail, too. */
        (void)cudaStreamIsCapturing(config->stream, &status);
        (void)cudaFuncGetName(&name, function);
        launches[n_launches++] = (struct emu_launch){
            .name = name, .is_in_graph = status == cudaStreamCaptureStatusActive, .stream = config->stream};
    }
    return __real_cudaLaunchKernelExC(config, function, args);
}

/* ---------------------------------------------------------------- the GPU, and the group of tests */

static void need_a_device(void)
{
    struct cudaDeviceProp properties;
    int n = 0;
    cudaError_t code = cudaGetDeviceCount(&n);

    if (code == cudaSuccess && n == 0)
        code = cudaErrorNoDevice;
    if (code == cudaSuccess)
        code = cudaGetDeviceProperties(&properties, 0);
    if (code != cudaSuccess) {
        (void)fprintf(stderr, "error: no usable GPU: %s (%s)\n", cudaGetErrorString(code), cudaGetErrorName(code));
        exit(NO_DEVICE);
    }
    if (properties.major != 9) {
        (void)fprintf(stderr, "error: these tests are for compute capability 9.0; %s has %d.%d\n", properties.name,
                      properties.major, properties.minor);
        exit(NO_DEVICE);
    }
}

static bool is_left_out(const char *name)
{
    for (size_t i = 0; i < sizeof LEFT_OUT / sizeof *LEFT_OUT; i++) {
        if (strcmp(name, LEFT_OUT[i]) == 0)
            return true;
    }
    return false;
}

int __wrap__cmocka_run_group_tests(const char *name, const struct CMUnitTest *tests, size_t n, CMFixtureFunction set_up,
                                   CMFixtureFunction tear_down)
{
    struct CMUnitTest kept[TESTS_MAX];
    size_t n_kept = 0;
    cudaError_t code;
    int failed;

    need_a_device();
    for (size_t i = 0; i < n; i++) {
        if (is_left_out(tests[i].name))
            continue;
        if (n_kept == TESTS_MAX)
            abort();
        kept[n_kept++] = tests[i];
    }
    failed = __real__cmocka_run_group_tests(name, kept, n_kept, set_up, tear_down);
    code = cudaDeviceSynchronize();
    if (code != cudaSuccess)
        (void)fprintf(stderr, "error: the device is left with %s\n", cudaGetErrorName(code));
    return failed + (code != cudaSuccess);
}

/* ---------------------------------------------------------------- gpu.h and what is used of runtime.h */

void gpu_be(int kind)
{
    int rc = kind == GPU_PORTABLE ? setenv("HEADRACE_CUDA", "portable", 1) : unsetenv("HEADRACE_CUDA");

    assert_int_equal(rc, 0);
    n_allocations = n_violations = n_launches = 0;
    is_guarded = false;
}

void gpu_check_clean(void)
{
    assert_int_equal(n_violations, 0);
    assert_int_equal(n_allocations, 0);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
}

size_t emu_n_allocations(void)
{
    return n_allocations;
}

void emu_guard(bool on)
{
    is_guarded = on;
}

/* A GPU is quick enough to run what a test of the host's part would rather skip. */
void emu_skip_kernels(bool on)
{
    (void)on;
}

size_t emu_n_launches(void)
{
    return n_launches;
}

struct emu_launch emu_launch_at(size_t i)
{
    return launches[i];
}

void emu_clear_trace(void)
{
    n_launches = 0;
}

/* Only tests that are left out come here. */
struct emu_device emu_default_device(void)
{
    abort();
}

void emu_configure(const struct emu_device *device)
{
    (void)device;
    abort();
}
