// What the files of the runtime stand-in share. Callers hold `lock` unless a comment says otherwise.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "runtime.h"

namespace emu
{

// ---------------------------------------------------------------- calls (runtime_calls.cc)

extern std::recursive_mutex lock;

// What a call is, for the guard and for streams that are being captured.
enum CallKind {
    PLAIN,
    MAKE,       // makes or destroys a handle: not inside the guard
    WAIT,       // waits for a stream: not inside the guard
    ALLOCATE,   // takes or gives back memory: neither inside the guard nor during a capture
    WAIT_DEVICE // waits for more than one stream: neither
};
// Counts the call and finds out whether it fails before it begins: a planted fault, the sticky error, a guarded region.
cudaError_t enter(const char *call, CallKind kind);
// Remembers an error for cudaGetLastError and returns it.
cudaError_t fail(cudaError_t error);
void set_sticky(cudaError_t error);
void forgive(); // no errors any more
cudaError_t sticky();
__attribute__((format(printf, 1, 2))) void violation(const char *format, ...);
extern bool is_lazy, skips_kernels;
extern emu_device device;
void reset_calls();
uint64_t random_below(uint64_t n); // 0 without a seed
bool has_seed();

// Begins every function of the API: takes the lock, then enter().
#define EMU_CALL(kind)                                      \
    std::lock_guard<std::recursive_mutex> guard(emu::lock); \
    if (cudaError_t error = emu::enter(__func__, kind))     \
    return error

// ---------------------------------------------------------------- memory (runtime_memory.cc); its lock is its own

enum MemoryKind { PAGEABLE, PINNED, DEVICE, INVALID };
// Of n bytes at p; INVALID: in one of our ranges but not wholly inside a live allocation.
MemoryKind memory_kind(const void *p, size_t n);
void reset_memory();
void reset_copies(); // runtime_copy.cc

// ---------------------------------------------------------------- streams (runtime_stream.cc)

struct Stream;
using Runner = std::function<void(Stream &)>;
struct Op {
    Runner run;
    std::vector<std::pair<std::shared_ptr<Stream>, uint64_t>> after; // operations of other streams that come first
};
struct Graph;
struct Stream {
    std::deque<Op> queue;
    uint64_t submitted = 0, done = 0;
    bool is_null = false, is_blocking = true;
    int priority = 0;
    bool is_in_graph = false; // a graph is what it runs just now
    uint64_t last_grid = 0;   // number of the grid that the operation before the next one was; 0: it was no kernel
    std::shared_ptr<Graph> capture; // being captured into this
    std::vector<size_t> tail;       // nodes of it that the next one comes after
    cudaStream_t handle()
    {
        return is_null ? nullptr : reinterpret_cast<cudaStream_t>(this);
    }
};
std::shared_ptr<Stream> find_stream(cudaStream_t handle); // NULL: not a stream
void submit(const std::shared_ptr<Stream> &stream, Op op);
void run_until(const std::shared_ptr<Stream> &stream, uint64_t operation);
void run_all();
void reset_streams();
size_t n_stream_handles(); // streams and events
// Streams that are being captured.
std::vector<std::shared_ptr<Stream>> captured_streams();
// The error of what the device has done so far, for calls that wait.
cudaError_t after_wait();

// ---------------------------------------------------------------- graphs (runtime_graph.cc)

enum NodeKind { KERNEL_NODE, COPY_NODE, MEMSET_NODE, HOST_NODE, EMPTY_NODE };
// An operation as it was asked for, which may run many times.
struct Work {
    NodeKind kind = EMPTY_NODE;
    const void *function = nullptr; // of a kernel
    // Called at submission (or when the graph is launched); what it returns runs when the work's turn has come.
    std::function<Runner()> prepare;
};
struct Node {
    Work work;
    std::vector<size_t> after;
};
struct Graph {
    std::vector<Node> nodes;
    std::shared_ptr<Stream> origin; // while it is captured
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    bool is_invalid = false;
};
// Into the stream's graph if it is being captured, else into its queue.
cudaError_t submit_work(const std::shared_ptr<Stream> &stream, Work work);
void invalidate(Stream &stream);
void reset_graphs();
size_t n_graph_handles();

// ---------------------------------------------------------------- launches (runtime_launch.cc)

void reset_launches();
void clear_trace();
int shared_memory_max(); // a block, when asked for

} // namespace emu
