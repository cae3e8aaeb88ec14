// The emulation of CUDA blocks as tests and the runtime stand-in see it: configuration, running a grid, reports,
// counts.
//
// Kernels see include/simt/host.h and prim_host.h instead. README.md tells what is modelled and what is not.
#pragma once

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>
#include <functional>
#include <string>
#include <vector>

struct CUtensorMap_st;

namespace simt
{

// When asynchronous work (bulk and tensor copies, cp.async, wgmma, bulk stores) is performed.
enum Async {
    ASYNC_LATE,  // not before somebody waits for it: shows missing waits and buffers that are released early
    ASYNC_EARLY, // at issue: shows buffers that are filled before their readers have finished
    ASYNC_RANDOM // in between, by the seed
};

// Read from the environment at start (names in brackets); tests may change it between launches.
struct Config {
    uint64_t seed = 0;        // 0: threads run in order; else a random order that this number repeats [SIMT_SEED]
    Async async = ASYNC_LATE; // [SIMT_ASYNC=late|early|random]
    bool check = false;       // race, bounds and fence checks; needs kernels of the checked build [SIMT_CHECK=1]
    bool pdl = true;          // apply the rules of programmatic launches (run_grid) [SIMT_PDL=0|1]
    bool poison = true;       // fill shared memory with NaN when a block starts [SIMT_POISON=0|1]
    bool quiet = false;       // do not print reports (tests that expect them)
    int threads = 0;          // OS threads that run blocks; 0: one a core [SIMT_THREADS]
};
extern Config config;
// Whether instrumented kernels are linked in; config.check has no effect otherwise.
bool is_checked_build();

// Runs all blocks and returns when they have ended, or when the first of them has failed.
// programmatic: the launch carries the attribute of programmatic serialization and the operation before it in its
// stream is a kernel, which was the last grid run. Every block must then call griddep_wait(); in checked mode memory
// written by that kernel must not be touched, and nothing be written, before it. One grid at a time: callers serialise.
// The body is the kernel with its arguments bound; it runs once per CUDA thread.
void run_grid(dim3 grid, dim3 block, size_t smem, dim3 cluster, const char *name, const std::function<void()> &body,
              bool programmatic = false);

bool failed_last_grid();
// The first report since the last call, empty if none. Several lines: what, kernel and thread, file and line.
std::string take_report();

// What kernels did, by their own accounting. Flops are 2 a multiply-add, of the full instruction shape.
struct Counters {
    uint64_t bulk_load_bytes = 0;  // bulk_load and tma_load
    uint64_t bulk_store_bytes = 0; // bulk_store and tma_store
    uint64_t bulk_prefetch_bytes = 0;
    uint64_t cp_async_bytes = 0;    // only those that read
    uint64_t global_read_bytes = 0; // of device memory, copies included; checked build only
    uint64_t global_write_bytes = 0;
    uint64_t wgmma_flops = 0;
    uint64_t mma_flops = 0;
    uint64_t barriers = 0;    // bar_sync, __syncthreads: arrivals
    uint64_t collectives = 0; // warp collectives performed
};
struct LaunchRecord {
    std::string kernel;
    dim3 grid, block, cluster;
    size_t smem;
    bool programmatic;
    Counters counters;
};
// Launches since the last call, oldest first (the last 65,536).
std::vector<LaunchRecord> take_launches();

// Demangled name of a function without its parameters, from the symbol table (static ones too); "?" if stripped.
std::string symbol_name(const void *function);

// A tensor map as cuTensorMapEncodeTiled would write it, for prim::tma_load_2d and its kin: dims and box from the
// innermost dimension on, strides in bytes (of the second dimension and on), swizzle_bytes 0, 32, 64 or 128, zeros out
// of bounds. False if the hardware would refuse it.
bool make_tensor_map(CUtensorMap_st *map, void *base, int rank, int element_bytes, const uint64_t *dims,
                     const uint64_t *strides, const uint32_t *box, int swizzle_bytes);

// Provided by the runtime stand-in: a sentence about a device address, and whether n bytes at p are out of bounds (0:
// they are inside a live allocation, or not device memory at all; 1: device memory that is freed or out of bounds).
std::string describe_global(const void *p);
int global_check(const void *p, size_t n);
// Whether p lies in the device's address range, allocated or not.
bool is_device_address(const void *p);

} // namespace simt
