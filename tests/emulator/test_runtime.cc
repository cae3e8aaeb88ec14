// Holds the stand-in for the CUDA runtime to what runtime.h promises: tests of the CUDA backend rest on it.
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <string>
#include <thread>
#include <vector>
extern "C" {
#include <cmocka.h>
}
#include <cuda_runtime.h>
#include <simt/host.h>

#include "runtime.h"
#include "simt.h"

#define CUDA(call) assert_int_equal((call), cudaSuccess)

namespace
{

__global__ void add_kernel(int *p, int n, int value)
{
    int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n)
        p[i] += value;
}
// Needs the value that the one before left.
__global__ void double_kernel(int *p)
{
    if (threadIdx.x == 0)
        *p *= 2;
}
__global__ void faulting_kernel(int *p)
{
    *p = 1;
}

cudaError_t launch(cudaStream_t stream, void (*kernel)(int *), int *p, unsigned threads = 32, bool programmatic = false)
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attribute;

    config.gridDim = dim3(1);
    config.blockDim = dim3(threads);
    config.stream = stream;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = programmatic;
    return cudaLaunchKernelEx(&config, kernel, p);
}

cudaError_t launch_add(cudaStream_t stream, int *p, int n, int value, size_t smem = 0)
{
    cudaLaunchConfig_t config = {};

    config.gridDim = dim3(static_cast<unsigned>((n + 31) / 32));
    config.blockDim = dim3(32);
    config.dynamicSmemBytes = smem;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, add_kernel, p, n, value);
}

int *device_int(int value)
{
    int *p = nullptr;

    CUDA(cudaMalloc(reinterpret_cast<void **>(&p), sizeof *p));
    CUDA(cudaMemcpy(p, &value, sizeof value, cudaMemcpyHostToDevice));
    return p;
}

int read_int(const int *p)
{
    int value;

    CUDA(cudaMemcpy(&value, p, sizeof value, cudaMemcpyDeviceToHost));
    return value;
}

int *pinned_ints(size_t n)
{
    int *p = nullptr;

    CUDA(cudaMallocHost(reinterpret_cast<void **>(&p), n * sizeof *p));
    return p;
}

cudaStream_t new_stream()
{
    cudaStream_t stream;

    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}

cudaEvent_t new_event(unsigned flags = cudaEventDisableTiming)
{
    cudaEvent_t event;

    CUDA(cudaEventCreateWithFlags(&event, flags));
    return event;
}

bool has_violation(const char *part)
{
    for (size_t i = 0; i < emu_n_violations(); i++)
        if (strstr(emu_violation(i), part))
            return true;
    return false;
}

// What the child process ends with when it touches p.
bool touching_faults(volatile char *p)
{
    pid_t child = fork();

    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        signal(SIGBUS, SIG_DFL);
        *p = 1;
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

// ---------------------------------------------------------------- device and memory

void the_device_is_what_the_test_configures(void **)
{
    emu_device d = emu_default_device();
    cudaDeviceProp properties;
    int value;
    size_t free_bytes, total;

    d.major = 8;
    d.n_sms = 108;
    d.memory_bytes = 1 << 20;
    strcpy(d.name, "Some A100");
    emu_configure(&d);
    CUDA(cudaGetDeviceProperties(&properties, 0));
    assert_string_equal(properties.name, "Some A100");
    assert_int_equal(properties.multiProcessorCount, 108);
    CUDA(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, 0));
    assert_int_equal(value, 8);
    CUDA(cudaMemGetInfo(&free_bytes, &total));
    assert_int_equal(total, 1 << 20);
    assert_int_equal(cudaSetDevice(1), cudaErrorInvalidDevice);
    d.n_devices = 0;
    emu_configure(&d);
    assert_int_equal(cudaGetDeviceCount(&value), cudaErrorNoDevice);
    assert_int_equal(value, 0);
}

void memory_ends_where_the_device_says(void **)
{
    emu_device d = emu_default_device();
    void *a, *b;

    d.memory_bytes = 10 << 20;
    emu_configure(&d);
    CUDA(cudaMalloc(&a, 8 << 20));
    assert_int_equal(cudaMalloc(&b, 4 << 20), cudaErrorMemoryAllocation);
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    CUDA(cudaFree(a));
    CUDA(cudaMalloc(&b, 4 << 20));
    assert_int_equal(emu_n_allocations(), 1);
}

void fresh_memory_is_nan(void **)
{
    for (size_t n : {size_t(16), size_t(40) << 20}) {
        float *p, last;

        CUDA(cudaMalloc(reinterpret_cast<void **>(&p), n));
        CUDA(cudaMemcpy(&last, p + n / 4 - 1, 4, cudaMemcpyDeviceToHost));
        assert_true(last != last);
    }
}

void freed_memory_and_the_byte_after_a_block_fault(void **)
{
    char *p, *q;

    CUDA(cudaMalloc(reinterpret_cast<void **>(&p), 4096));
    assert_false(touching_faults(p));
    assert_false(touching_faults(p + 4095));
    assert_true(touching_faults(p + 4096));
    CUDA(cudaFree(p));
    assert_true(touching_faults(p));
    CUDA(cudaMallocHost(reinterpret_cast<void **>(&q), 4096));
    CUDA(cudaFreeHost(q));
    assert_true(touching_faults(q));
    CUDA(cudaMalloc(reinterpret_cast<void **>(&q), 4096));
    assert_ptr_not_equal(p, q);
    assert_int_equal(cudaFree(p), cudaErrorInvalidValue);
}

void an_address_is_described(void **)
{
    char *p;

    CUDA(cudaMalloc(reinterpret_cast<void **>(&p), 100));
    assert_string_equal(simt::describe_global(p + 7).c_str(), "offset 7 of a live allocation of 100 bytes");
    assert_string_equal(simt::describe_global(p + 103).c_str(),
                        "3 bytes past the end of a live allocation of 100 bytes");
    assert_int_equal(simt::global_check(p, 100), 0);
    assert_int_equal(simt::global_check(p, 101), 1);
    assert_int_equal(simt::global_check(p + 100, 1), 1);
    assert_true(simt::is_device_address(p));
    CUDA(cudaFree(p));
    assert_int_equal(simt::global_check(p, 1), 1);
}

// ---------------------------------------------------------------- copies

void a_copy_out_of_bounds_or_the_wrong_way_is_refused(void **)
{
    int *p = device_int(3), host[2] = {};

    assert_int_equal(cudaMemcpy(host, p, 8, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(host, p, 4, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    CUDA(cudaMemcpy(host, p, 4, cudaMemcpyDefault));
    assert_int_equal(host[0], 3);
    assert_int_equal(cudaMemset(p, 0, 8), cudaErrorInvalidValue);
    CUDA(cudaMemset(p, 0, 4));
    assert_int_equal(read_int(p), 0);
}

void an_asynchronous_copy_from_pageable_memory_is_reported(void **)
{
    cudaStream_t stream = new_stream();
    int *p = device_int(0), value = 5;

    CUDA(cudaMemcpyAsync(p, &value, sizeof value, cudaMemcpyHostToDevice, stream));
    assert_true(has_violation("from pageable host memory"));
    value = 6;
    CUDA(cudaStreamSynchronize(stream));
    assert_int_equal(read_int(p), 5);
    emu_clear_violations();
    CUDA(cudaHostRegister(&value, sizeof value, 0));
    CUDA(cudaMemcpyAsync(p, &value, sizeof value, cudaMemcpyHostToDevice, stream));
    CUDA(cudaStreamSynchronize(stream));
    assert_int_equal(emu_n_violations(), 0);
    CUDA(cudaHostUnregister(&value));
}

void writing_a_pinned_block_while_a_copy_reads_it_is_reported(void **)
{
    cudaStream_t stream = new_stream();
    int *p = device_int(0), *block = pinned_ints(1);

    *block = 1;
    CUDA(cudaMemcpyAsync(p, block, sizeof *block, cudaMemcpyHostToDevice, stream));
    CUDA(cudaStreamSynchronize(stream));
    *block = 2; // after the wait: fine
    CUDA(cudaMemcpyAsync(p, block, sizeof *block, cudaMemcpyHostToDevice, stream));
    assert_int_equal(emu_n_violations(), 0);
    *block = 3;
    CUDA(cudaStreamSynchronize(stream));
    assert_true(has_violation("while a pending copy reads it"));
}

void the_target_of_a_pending_copy_holds_nothing_useful(void **)
{
    cudaStream_t stream = new_stream();
    int *p = device_int(7), *block = pinned_ints(1);

    *block = 0;
    CUDA(cudaMemcpyAsync(block, p, sizeof *block, cudaMemcpyDeviceToHost, stream));
    assert_int_equal(*block, -1);
    CUDA(cudaMemcpyAsync(block, p, sizeof *block, cudaMemcpyDeviceToHost, stream)); // twice is no misuse
    CUDA(cudaStreamSynchronize(stream));
    assert_int_equal(*block, 7);
    assert_int_equal(emu_n_violations(), 0);
    CUDA(cudaMemcpyAsync(block, p, sizeof *block, cudaMemcpyDeviceToHost, stream));
    *block = 9;
    CUDA(cudaStreamSynchronize(stream));
    assert_true(has_violation("while a pending copy writes it"));
}

// ---------------------------------------------------------------- streams and events

void work_runs_only_when_somebody_waits(void **)
{
    cudaStream_t stream = new_stream();
    int *p = device_int(1);

    CUDA(launch(stream, double_kernel, p));
    assert_int_equal(read_int(p), 1); // another stream: nothing orders the two
    CUDA(cudaStreamSynchronize(stream));
    assert_int_equal(read_int(p), 2);
    emu_streams(EMU_EAGER);
    CUDA(launch(stream, double_kernel, p));
    assert_int_equal(read_int(p), 4);
    emu_streams(EMU_LAZY);
}

void the_default_stream_waits_for_blocking_streams_only(void **)
{
    cudaStream_t blocking;
    int *p = device_int(1);

    CUDA(cudaStreamCreate(&blocking));
    CUDA(launch(blocking, double_kernel, p));
    assert_int_equal(read_int(p), 2);
    CUDA(launch(nullptr, double_kernel, p));
    CUDA(launch(blocking, double_kernel, p));
    CUDA(cudaStreamSynchronize(blocking));
    assert_int_equal(read_int(p), 8);
}

void an_event_orders_two_streams(void **)
{
    cudaStream_t first = new_stream(), second = new_stream();
    cudaEvent_t event = new_event();
    int *p = device_int(3);

    CUDA(launch_add(first, p, 1, 1));
    CUDA(cudaEventRecord(event, first));
    CUDA(launch_add(first, p, 1, 100));
    CUDA(cudaStreamWaitEvent(second, event, 0));
    CUDA(launch(second, double_kernel, p));
    CUDA(cudaStreamSynchronize(second));
    assert_int_equal(read_int(p), 8); // and no more of the first stream than was waited for
    CUDA(cudaStreamSynchronize(first));
    assert_int_equal(read_int(p), 108);
}

void polling_an_event_ends(void **)
{
    cudaStream_t stream = new_stream();
    cudaEvent_t event = new_event();
    int *p = device_int(1);

    CUDA(cudaEventQuery(event)); // never recorded
    CUDA(launch(stream, double_kernel, p));
    CUDA(launch(stream, double_kernel, p));
    CUDA(cudaEventRecord(event, stream));
    assert_int_equal(cudaEventQuery(event), cudaErrorNotReady);
    int n = 0;
    while (cudaEventQuery(event) == cudaErrorNotReady)
        n++;
    assert_in_range(n, 0, 5);
    assert_int_equal(read_int(p), 4);
}

void events_measure_time_unless_told_not_to(void **)
{
    cudaStream_t stream = new_stream();
    cudaEvent_t from = new_event(cudaEventDefault), to = new_event(cudaEventDefault), silent = new_event();
    float ms = -1;

    assert_int_equal(cudaEventElapsedTime(&ms, from, to), cudaErrorInvalidResourceHandle);
    CUDA(cudaEventRecord(from, stream));
    CUDA(cudaEventRecord(to, stream));
    CUDA(cudaEventRecord(silent, stream));
    assert_int_equal(cudaEventElapsedTime(&ms, from, to), cudaErrorNotReady);
    CUDA(cudaEventSynchronize(to));
    CUDA(cudaEventElapsedTime(&ms, from, to));
    assert_true(ms >= 0);
    assert_int_equal(cudaEventElapsedTime(&ms, from, silent), cudaErrorInvalidResourceHandle);
}

void a_destroyed_handle_is_refused(void **)
{
    cudaStream_t stream = new_stream();
    cudaEvent_t event = new_event();
    int *p = device_int(1);

    assert_int_equal(emu_n_handles(), 2);
    CUDA(launch(stream, double_kernel, p));
    CUDA(cudaStreamDestroy(stream));
    CUDA(cudaEventDestroy(event));
    assert_int_equal(emu_n_handles(), 0);
    assert_int_equal(cudaStreamSynchronize(stream), cudaErrorInvalidResourceHandle);
    assert_int_equal(cudaEventRecord(event, nullptr), cudaErrorInvalidResourceHandle);
    CUDA(cudaDeviceSynchronize()); // what the stream still had is done
    assert_int_equal(read_int(p), 2);
}

void host_functions_run_in_stream_order(void **)
{
    cudaStream_t stream = new_stream();
    std::vector<int> seen;

    CUDA(cudaLaunchHostFunc(
        stream, [](void *data) { static_cast<std::vector<int> *>(data)->push_back(1); }, &seen));
    assert_true(seen.empty());
    CUDA(cudaStreamSynchronize(stream));
    assert_int_equal(seen.size(), 1);
}

// ---------------------------------------------------------------- graphs

void a_captured_graph_runs_as_often_as_it_is_launched(void **)
{
    cudaStream_t stream = new_stream();
    int *p = device_int(1), *block = pinned_ints(1);
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    size_t n_nodes;

    *block = 5;
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    CUDA(cudaMemcpyAsync(p, block, sizeof *block, cudaMemcpyHostToDevice, stream));
    CUDA(launch(stream, double_kernel, p));
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphGetNodes(graph, nullptr, &n_nodes));
    assert_int_equal(n_nodes, 2);
    CUDA(cudaGraphInstantiate(&executable, graph, 0));
    CUDA(cudaGraphDestroy(graph));
    assert_int_equal(read_int(p), 1); // capturing runs nothing
    CUDA(cudaGraphLaunch(executable, stream));
    CUDA(cudaStreamSynchronize(stream));
    assert_int_equal(read_int(p), 10);
    *block = 6; // a graph reads its sources anew
    CUDA(cudaGraphLaunch(executable, stream));
    CUDA(cudaStreamSynchronize(stream));
    assert_int_equal(read_int(p), 12);
    assert_int_equal(emu_n_violations(), 0);
    CUDA(cudaGraphLaunch(executable, stream));
    *block = 7;
    CUDA(cudaGraphExecDestroy(executable)); // its last launch goes on
    CUDA(cudaStreamSynchronize(stream));
    assert_true(has_violation("while a pending copy reads it"));
}

// p * 2 + 100, where the addition comes from a second stream that an event joins, or with a missing edge.
cudaError_t capture_fork(cudaStream_t main_stream, cudaStream_t side, int *p, bool joins, bool forks,
                         cudaGraph_t *graph)
{
    cudaEvent_t fork = new_event(), join = new_event();

    CUDA(cudaStreamBeginCapture(main_stream, cudaStreamCaptureModeRelaxed));
    if (!forks)
        CUDA(cudaEventRecord(fork, main_stream));
    CUDA(launch(main_stream, double_kernel, p));
    if (forks)
        CUDA(cudaEventRecord(fork, main_stream));
    CUDA(cudaStreamWaitEvent(side, fork, 0));
    CUDA(launch_add(side, p, 1, 100));
    CUDA(cudaEventRecord(join, side));
    if (joins)
        CUDA(cudaStreamWaitEvent(main_stream, join, 0));
    return cudaStreamEndCapture(main_stream, graph);
}

void a_capture_forks_and_joins_by_events(void **)
{
    cudaStream_t stream = new_stream(), side = new_stream();
    int *p = device_int(1);
    cudaGraph_t graph;
    cudaGraphExec_t executable;

    CUDA(capture_fork(stream, side, p, true, true, &graph));
    CUDA(cudaGraphInstantiate(&executable, graph, 0));
    CUDA(cudaGraphLaunch(executable, stream));
    CUDA(cudaStreamSynchronize(stream));
    assert_int_equal(read_int(p), 102);
    assert_int_equal(capture_fork(stream, side, p, false, true, &graph), cudaErrorStreamCaptureUnjoined);
    assert_null(graph);
    CUDA(launch(stream, double_kernel, p)); // the capture is over
    CUDA(cudaStreamSynchronize(stream));
    assert_int_equal(read_int(p), 204);
}

void a_missing_edge_shows_under_some_seed(void **)
{
    cudaStream_t stream = new_stream(), side = new_stream();
    bool saw_wrong = false, saw_right = false;

    for (uint64_t seed = 1; seed < 40; seed++) {
        int *p = device_int(1);
        cudaGraph_t graph;
        cudaGraphExec_t executable;

        simt::config.seed = seed;
        CUDA(capture_fork(stream, side, p, true, false, &graph));
        CUDA(cudaGraphInstantiate(&executable, graph, 0));
        CUDA(cudaGraphLaunch(executable, stream));
        CUDA(cudaStreamSynchronize(stream));
        (read_int(p) == 102 ? saw_right : saw_wrong) = true;
    }
    simt::config.seed = 0;
    assert_true(saw_wrong && saw_right);
}

void what_a_capture_forbids_ends_it(void **)
{
    cudaStream_t stream = new_stream();
    cudaGraph_t graph;
    void *p;

    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    assert_int_equal(cudaMalloc(&p, 16), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    assert_int_equal(cudaStreamSynchronize(stream), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    CUDA(cudaMalloc(&p, 16));
    CUDA(cudaStreamEndCapture(stream, &graph));
}

void an_executable_graph_is_updated_if_its_shape_is_the_same(void **)
{
    cudaStream_t stream = new_stream();
    int *p = device_int(1), *q = device_int(1);
    cudaGraph_t graphs[3];
    cudaGraphExec_t executable;
    cudaGraphExecUpdateResultInfo info;

    for (int i = 0; i < 3; i++) {
        CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        CUDA(i < 2 ? launch(stream, double_kernel, i ? q : p) : launch_add(stream, p, 1, 1));
        CUDA(cudaStreamEndCapture(stream, &graphs[i]));
    }
    CUDA(cudaGraphInstantiate(&executable, graphs[0], 0));
    CUDA(cudaGraphExecUpdate(executable, graphs[1], &info));
    assert_int_equal(cudaGraphExecUpdate(executable, graphs[2], &info), cudaErrorGraphExecUpdateFailure);
    CUDA(cudaGraphLaunch(executable, stream));
    CUDA(cudaStreamSynchronize(stream));
    assert_int_equal(read_int(p), 1);
    assert_int_equal(read_int(q), 2);
}

// ---------------------------------------------------------------- launches

void a_launch_that_the_device_cannot_do_is_refused(void **)
{
    cudaStream_t stream = new_stream();
    emu_device d = emu_default_device();
    int *p = device_int(0);

    assert_int_equal(launch(stream, double_kernel, p, 1025), cudaErrorInvalidConfiguration);
    assert_int_equal(launch_add(stream, p, 1, 1, 49 * 1024), cudaErrorInvalidValue);
    CUDA(cudaFuncSetAttribute(add_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024));
    CUDA(launch_add(stream, p, 1, 1, 49 * 1024));
    assert_int_equal(cudaFuncSetAttribute(add_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 228 * 1024),
                     cudaErrorInvalidValue);
    d.major = 8;
    emu_configure(&d);
    assert_int_equal(launch(nullptr, double_kernel, p, 32, true), cudaErrorNotSupported);
}

void launches_are_traced_in_the_order_in_which_they_ran(void **)
{
    cudaStream_t stream = new_stream();
    int *p = device_int(1);

    CUDA(launch_add(stream, p, 1, 1));
    CUDA(launch(stream, double_kernel, p, 64, false));
    assert_int_equal(emu_n_launches(), 0);
    CUDA(cudaStreamSynchronize(stream));
    assert_int_equal(emu_n_launches(), 2);
    assert_non_null(strstr(emu_launch_at(0).name, "add_kernel"));
    emu_launch second = emu_launch_at(1);
    assert_non_null(strstr(second.name, "double_kernel"));
    assert_int_equal(second.block[0], 64);
    assert_ptr_equal(second.stream, stream);
    assert_false(second.is_programmatic || second.is_in_graph);
}

void skipped_kernels_are_traced_but_do_nothing(void **)
{
    int *p = device_int(1);

    emu_skip_kernels(true);
    CUDA(launch(nullptr, double_kernel, p, 32, true));
    assert_int_equal(read_int(p), 1);
    assert_int_equal(emu_n_launches(), 1);
    assert_true(emu_launch_at(0).is_programmatic);
}

// ---------------------------------------------------------------- errors, faults, guard

void a_kernel_that_faults_leaves_a_sticky_error(void **)
{
    cudaStream_t stream = new_stream();
    int *p = device_int(1), *gone = device_int(1), value;

    CUDA(cudaFree(gone));
    simt::config.quiet = true;
    CUDA(launch(stream, faulting_kernel, gone)); // the launch itself succeeds
    CUDA(launch(stream, double_kernel, p));
    assert_int_equal(cudaStreamSynchronize(stream), cudaErrorLaunchFailure);
    simt::config.quiet = false;
    assert_false(simt::take_report().empty());
    assert_int_equal(emu_n_launches(), 1); // nothing runs after the fault
    assert_int_equal(cudaMemcpy(&value, p, 4, cudaMemcpyDeviceToHost), cudaErrorLaunchFailure);
    assert_int_equal(cudaFree(p), cudaErrorLaunchFailure);
    assert_int_equal(cudaGetLastError(), cudaErrorLaunchFailure);
    assert_int_equal(cudaGetLastError(), cudaErrorLaunchFailure);
    emu_reset();
    CUDA(cudaGetLastError());
    assert_int_equal(emu_n_allocations(), 0);
}

void each_call_can_be_made_to_fail(void **)
{
    int *p = device_int(1);
    size_t free_bytes, total;

    emu_clear_calls();
    emu_fault("cudaMemGetInfo", 2, cudaErrorUnknown, false);
    CUDA(cudaMemGetInfo(&free_bytes, &total));
    assert_false(emu_fault_happened());
    assert_int_equal(cudaMemGetInfo(&free_bytes, &total), cudaErrorUnknown);
    assert_true(emu_fault_happened());
    CUDA(cudaMemGetInfo(&free_bytes, &total));
    assert_int_equal(emu_count("cudaMemGetInfo"), 3);
    emu_clear_calls();
    emu_fault("cudaLaunchKernelEx", 1, cudaErrorIllegalAddress, true);
    assert_int_equal(launch(nullptr, double_kernel, p), cudaErrorIllegalAddress);
    assert_int_equal(cudaMemGetInfo(&free_bytes, &total), cudaErrorIllegalAddress);
    assert_int_equal(emu_n_calls(), 2);
    assert_string_equal(emu_call(0), "cudaLaunchKernelEx");
    assert_string_equal(emu_call(1), "cudaMemGetInfo");
}

void the_guard_reports_allocation_and_waiting(void **)
{
    cudaStream_t stream = new_stream();
    cudaEvent_t event = new_event();
    int *p = device_int(1), *block = pinned_ints(1), host;
    void *q;

    emu_guard(true);
    *block = 1;
    CUDA(cudaMemcpyAsync(p, block, sizeof *block, cudaMemcpyHostToDevice, stream));
    CUDA(launch(stream, double_kernel, p));
    CUDA(cudaMemcpyAsync(block + 0, p, sizeof *block, cudaMemcpyDeviceToHost, stream));
    CUDA(cudaEventRecord(event, stream));
    CUDA(cudaEventSynchronize(event));
    assert_int_equal(*block, 2);
    CUDA(cudaMalloc(&q, 16));
    assert_true(has_violation("cudaMalloc inside the guarded region"));
    CUDA(cudaStreamSynchronize(stream));
    assert_true(has_violation("cudaStreamSynchronize inside"));
    CUDA(cudaMemcpy(&host, p, sizeof host, cudaMemcpyDeviceToHost));
    assert_true(has_violation("cudaMemcpy inside"));
    emu_guard(false);
    emu_clear_violations();
    CUDA(cudaFree(q));
    assert_int_equal(emu_n_violations(), 0);
}

void errors_have_names(void **)
{
    assert_string_equal(cudaGetErrorName(cudaErrorIllegalAddress), "cudaErrorIllegalAddress");
    assert_string_equal(cudaGetErrorString(cudaErrorMemoryAllocation), "out of memory");
}

void threads_may_call_at_once(void **)
{
    int *p = device_int(0);
    std::vector<std::thread> threads;

    for (int t = 0; t < 4; t++)
        threads.emplace_back([p] {
            cudaStream_t stream;
            void *q;
            for (int i = 0; i < 20; i++) {
                if (cudaStreamCreate(&stream) || cudaMalloc(&q, 64) || launch_add(stream, p, 1, 1) ||
                    cudaStreamSynchronize(stream) || cudaFree(q) || cudaStreamDestroy(stream))
                    return;
            }
        });
    for (auto &thread : threads)
        thread.join();
    assert_int_equal(read_int(p), 80);
}

int start_afresh(void **)
{
    emu_configure(nullptr);
    simt::config.quiet = true;
    simt::config.seed = 0;
    return 0;
}

} // namespace

int main(void)
{
#define TEST(name) cmocka_unit_test_setup(name, start_afresh)
    const CMUnitTest tests[] = {
        TEST(the_device_is_what_the_test_configures),
        TEST(memory_ends_where_the_device_says),
        TEST(fresh_memory_is_nan),
        TEST(freed_memory_and_the_byte_after_a_block_fault),
        TEST(an_address_is_described),
        TEST(a_copy_out_of_bounds_or_the_wrong_way_is_refused),
        TEST(an_asynchronous_copy_from_pageable_memory_is_reported),
        TEST(writing_a_pinned_block_while_a_copy_reads_it_is_reported),
        TEST(the_target_of_a_pending_copy_holds_nothing_useful),
        TEST(work_runs_only_when_somebody_waits),
        TEST(the_default_stream_waits_for_blocking_streams_only),
        TEST(an_event_orders_two_streams),
        TEST(polling_an_event_ends),
        TEST(events_measure_time_unless_told_not_to),
        TEST(a_destroyed_handle_is_refused),
        TEST(host_functions_run_in_stream_order),
        TEST(a_captured_graph_runs_as_often_as_it_is_launched),
        TEST(a_capture_forks_and_joins_by_events),
        TEST(a_missing_edge_shows_under_some_seed),
        TEST(what_a_capture_forbids_ends_it),
        TEST(an_executable_graph_is_updated_if_its_shape_is_the_same),
        TEST(a_launch_that_the_device_cannot_do_is_refused),
        TEST(launches_are_traced_in_the_order_in_which_they_ran),
        TEST(skipped_kernels_are_traced_but_do_nothing),
        TEST(a_kernel_that_faults_leaves_a_sticky_error),
        TEST(each_call_can_be_made_to_fail),
        TEST(the_guard_reports_allocation_and_waiting),
        TEST(errors_have_names),
        TEST(threads_may_call_at_once),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
