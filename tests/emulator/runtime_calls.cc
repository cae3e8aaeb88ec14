// Bookkeeping of the runtime stand-in that every call passes through: the log of calls, planted faults, the guard,
// violations and errors. A test that wants to see each error at each call site needs exactly this list of sites.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime_internal.h"
#include "simt.h"

namespace emu
{

std::recursive_mutex lock;
bool is_lazy = [] {
    const char *order = getenv("EMU_STREAMS");
    return !order || strcmp(order, "eager") != 0;
}();
bool skips_kernels;

namespace
{

constexpr size_t LOG_MAX = 1000000;

struct Fault {
    std::string call;
    uint32_t nth = 0;
    cudaError_t error = cudaSuccess;
    bool is_sticky = false, has_happened = false;
} fault;
std::vector<const char *> calls;
std::map<std::string, uint32_t> counts;
std::deque<std::string> violations; // a deque: what emu_violation returned stays where it is
bool is_guarded;
cudaError_t device_error = cudaSuccess;
thread_local cudaError_t last_error = cudaSuccess;
uint64_t random_state;

// A call that CUDA forbids while a stream is being captured ends the captures that forbid it.
cudaError_t refuse_during_capture()
{
    bool is_refused = false;

    for (auto &stream : captured_streams()) {
        if (stream->capture->mode == cudaStreamCaptureModeRelaxed)
            continue;
        invalidate(*stream);
        is_refused = true;
    }
    return is_refused ? fail(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

} // namespace

cudaError_t enter(const char *call, CallKind kind)
{
    if (calls.size() < LOG_MAX)
        calls.push_back(call);
    uint32_t n = ++counts[call];

    if (device_error)
        return fail(device_error);
    if (fault.nth == n && fault.call == call && !fault.has_happened) {
        fault.has_happened = true;
        if (fault.is_sticky)
            set_sticky(fault.error);
        return fail(fault.error);
    }
    if (is_guarded && kind != PLAIN)
        violation("%s inside the guarded region", call);
    return kind == ALLOCATE || kind == WAIT_DEVICE ? refuse_during_capture() : cudaSuccess;
}

cudaError_t fail(cudaError_t error)
{
    if (error)
        last_error = error;
    return error;
}

void set_sticky(cudaError_t error)
{
    if (!device_error)
        device_error = error;
}

cudaError_t sticky()
{
    return device_error;
}

void forgive()
{
    device_error = last_error = cudaSuccess;
}

void violation(const char *format, ...)
{
    char text[512];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    violations.push_back(text);
    if (!simt::config.quiet)
        fprintf(stderr, "cuda stand-in: %s\n", text);
}

bool has_seed()
{
    return simt::config.seed != 0;
}

uint64_t random_below(uint64_t n)
{
    if (!simt::config.seed)
        return 0;
    random_state = (random_state ^ simt::config.seed) * 6364136223846793005u + 1442695040888963407u;
    return (random_state >> 33) % n;
}

void reset_calls()
{
    calls.clear();
    counts.clear();
    violations.clear();
    fault = Fault();
    is_guarded = false;
    skips_kernels = false;
    forgive();
    random_state = 0;
}

} // namespace emu

using namespace emu;

extern "C" {

void emu_streams(emu_order order)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    is_lazy = order == EMU_LAZY;
    if (!is_lazy)
        run_all();
}

size_t emu_n_calls(void)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    return calls.size();
}

const char *emu_call(size_t i)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    return calls.at(i);
}

uint32_t emu_count(const char *call)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    auto found = counts.find(call);
    return found == counts.end() ? 0 : found->second;
}

void emu_clear_calls(void)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    calls.clear();
    counts.clear();
}

void emu_fault(const char *call, uint32_t nth, int error, bool is_sticky)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    fault = Fault();
    if (!call)
        return;
    fault.call = call;
    fault.nth = nth;
    fault.error = static_cast<cudaError_t>(error);
    fault.is_sticky = is_sticky;
}

bool emu_fault_happened(void)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    return fault.has_happened;
}

size_t emu_n_violations(void)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    return violations.size();
}

const char *emu_violation(size_t i)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    return violations.at(i).c_str();
}

void emu_clear_violations(void)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    violations.clear();
}

void emu_guard(bool on)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    is_guarded = on;
}

void emu_skip_kernels(bool on)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    skips_kernels = on;
}

cudaError_t cudaGetLastError(void)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    cudaError_t error = device_error ? device_error : last_error;

    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    return device_error ? device_error : last_error;
}

} // extern "C"
