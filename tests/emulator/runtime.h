/* The stand-in for the CUDA runtime: what tests set up and read beside the cudaXxx functions themselves.
 *
 * It has the symbols of libcudart that host code here calls, on host memory, with kernels run by the emulation
 * (simt.h). What it is strict about:
 *
 * - A stream's work runs only when something waits for it (lazy, the default), so missing synchronisation shows. A
 * query (cudaEventQuery, cudaStreamQuery) lets one operation run, so that polling ends. Between independent streams,
 * and between independent nodes of a graph, the order follows SIMT_SEED.
 * - Device memory is never reused, starts as NaN (0xff), ends at a guard page, and faults after cudaFree. So does
 * pinned memory. The target of a pending copy to the host is 0xff until the copy has run.
 * - A kernel that fails leaves the device with a sticky error: every later call returns it, until emu_reset.
 * - Misuse that CUDA lets pass in silence becomes a violation (emu_violation).
 *
 * Thread-safe: one lock, held while kernels run.
 */
#ifndef TESTS_EMULATOR_RUNTIME_H
#define TESTS_EMULATOR_RUNTIME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------- the device */

struct emu_device {
    int n_devices;       /* 1 */
    int major, minor;    /* compute capability: 9, 0 */
    int n_sms;           /* 4: small grids */
    size_t memory_bytes; /* 8 GiB */
    char name[64];       /* "Emulated H100" */
};
/* The defaults that the comments above name. */
struct emu_device emu_default_device(void);
/* From now on this is the device; NULL: the default. Implies emu_reset. */
void emu_configure(const struct emu_device *device);
/* As a fresh process: frees all memory, streams, events and graphs (their handles become invalid), clears errors,
 * faults, calls, violations and the trace, ends guard and skipping. Keeps the device of emu_configure. */
void emu_reset(void);

enum emu_order { EMU_LAZY, EMU_EAGER };
/* Lazy, or each operation at once. From the environment at start: EMU_STREAMS=lazy|eager. */
void emu_streams(enum emu_order order);

/* Live allocations (device and pinned), for leak checks, and the device bytes among them. */
size_t emu_n_allocations(void);
size_t emu_device_bytes(void);
/* Live streams, events, graphs and executable graphs. */
size_t emu_n_handles(void);

/* ---------------------------------------------------------------- calls and faults */

/* Names of the calls made since the last emu_clear_calls, in order (the first 1,000,000). A launch is called
 * "cudaLaunchKernelEx". */
size_t emu_n_calls(void);
const char *emu_call(size_t i);
/* How often `call` was made among them. */
uint32_t emu_count(const char *call);
void emu_clear_calls(void);

/* The nth (from 1) call of this name since emu_clear_calls returns `error` (a cudaError_t) and does nothing else.
 * is_sticky: as after a fault on the device: every later call returns it too. One fault at a time; NULL: none. */
void emu_fault(const char *call, uint32_t nth, int error, bool is_sticky);
/* Whether the fault has happened. */
bool emu_fault_happened(void);

/* ---------------------------------------------------------------- violations */

/* Sentences about misuse since the last clear:
 * - an asynchronous copy from or to pageable host memory;
 * - pinned memory written while a pending copy reads it, or touched while a pending copy writes it;
 * - inside the guard: allocation or release of memory, streams, events and graphs, a call that waits for a stream or
 *   the device, a copy that waits. cudaEventSynchronize and the queries are allowed: results come back that way. */
size_t emu_n_violations(void);
const char *emu_violation(size_t i);
void emu_clear_violations(void);
void emu_guard(bool on);

/* ---------------------------------------------------------------- launches */

/* On: launches are checked and traced but not run, for measuring what the host does. */
void emu_skip_kernels(bool on);

struct emu_launch {
    const char *name; /* demangled, no parameters; lives as long as the process */
    uint32_t grid[3], block[3], cluster[3];
    size_t smem;
    bool is_programmatic; /* carries the attribute */
    bool is_in_graph;
    void *stream; /* cudaStream_t that it ran in */
};
/* Launches that have run (or been skipped) since the last clear, in that order (the first 1,000,000). */
size_t emu_n_launches(void);
struct emu_launch emu_launch_at(size_t i);
void emu_clear_trace(void);

#ifdef __cplusplus
}
#endif

#endif
