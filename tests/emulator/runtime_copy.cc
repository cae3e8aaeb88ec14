// Copies and fills of the runtime stand-in, with the rules of host memory that CUDA itself does not check.
//
// Between the submission of an asynchronous copy and its end the host must leave the pinned block alone. Each pending
// copy watches its block: a source by a hash, a target by being full of 0xff until the copy has run, so that a host
// that reads too early reads garbage, and one that writes is found out.
#include <string.h>
#include <algorithm>
#include <list>

#include "runtime_internal.h"

namespace emu
{

namespace
{

struct Watch {
    const unsigned char *p;
    size_t n;
    bool is_target;
    uint64_t hash;
};
std::list<Watch> watches;

uint64_t hash_of(const unsigned char *p, size_t n)
{
    uint64_t hash = n, word;

    for (; n >= 8; n -= 8, p += 8) {
        memcpy(&word, p, 8);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 29;
    }
    for (; n; n--, p++)
        hash = (hash ^ *p) * 0x9e3779b97f4a7c15u;
    return hash;
}

std::list<Watch>::iterator watch(const void *p, size_t n, bool is_target)
{
    const auto *bytes = static_cast<const unsigned char *>(p);
    return watches.insert(watches.end(), Watch{bytes, n, is_target, hash_of(bytes, n)});
}

void end_watch(std::list<Watch>::iterator it)
{
    if (hash_of(it->p, it->n) != it->hash)
        violation(it->is_target ? "pinned memory at %p (%zu bytes) was written while a pending copy writes it"
                                : "pinned memory at %p (%zu bytes) was written while a pending copy reads it",
                  static_cast<const void *>(it->p), it->n);
    watches.erase(it);
}

bool is_read_by_pending_copy(const void *p, size_t n)
{
    const auto *low = static_cast<const unsigned char *>(p);

    return std::any_of(watches.begin(), watches.end(),
                       [=](const Watch &w) { return !w.is_target && w.p < low + n && low < w.p + w.n; });
}

// The device itself has written there: that is no misuse of the host's.
void device_wrote(const void *p, size_t n)
{
    const auto *low = static_cast<const unsigned char *>(p);

    for (Watch &w : watches)
        if (w.p < low + n && low < w.p + w.n)
            w.hash = hash_of(w.p, w.n);
}

// Whether memory of this kind may stand at an end of a copy.
bool fits(MemoryKind kind, bool may_be_host, bool may_be_device)
{
    return kind == DEVICE ? may_be_device : kind != INVALID && may_be_host;
}

cudaError_t check_copy(const void *to, const void *from, size_t n, cudaMemcpyKind kind)
{
    bool any = kind == cudaMemcpyDefault;

    if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault)
        return fail(cudaErrorInvalidMemcpyDirection);
    bool to_host = any || kind == cudaMemcpyHostToHost || kind == cudaMemcpyDeviceToHost;
    bool from_host = any || kind == cudaMemcpyHostToHost || kind == cudaMemcpyHostToDevice;
    bool to_device = any || kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = any || kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (n && (!fits(memory_kind(to, n), to_host, to_device) || !fits(memory_kind(from, n), from_host, from_device)))
        return fail(cudaErrorInvalidValue);
    return cudaSuccess;
}

void copy_now(void *to, const void *from, size_t n)
{
    memmove(to, from, n);
    if (memory_kind(to, n) != DEVICE)
        device_wrote(to, n);
}

Work copy_work(void *to, const void *from, size_t n)
{
    Work work;

    work.kind = COPY_NODE;
    work.prepare = [=]() -> Runner {
        std::vector<std::list<Watch>::iterator> watched;
        if (!skips_kernels) {
            if (memory_kind(from, n) == PINNED)
                watched.push_back(watch(from, n, false));
            if (memory_kind(to, n) == PINNED) {
                if (!is_read_by_pending_copy(to, n)) {
                    memset(to, 0xff, n);
                    device_wrote(to, n);
                }
                watched.push_back(watch(to, n, true));
            }
        }
        return [=](Stream &) {
            for (auto it : watched)
                end_watch(it);
            copy_now(to, from, n);
        };
    };
    return work;
}

// From pageable memory CUDA copies by way of a buffer of its own before it returns.
Work staged_work(void *to, const void *from, size_t n)
{
    const auto *bytes = static_cast<const unsigned char *>(from);
    auto staged = std::make_shared<std::vector<unsigned char>>(bytes, bytes + n);
    Work work;

    work.kind = COPY_NODE;
    work.prepare = [=]() -> Runner { return [=](Stream &) { copy_now(to, staged->data(), n); }; };
    return work;
}

cudaError_t fill(void *to, int value, size_t n, const std::shared_ptr<Stream> &stream)
{
    Work work;

    if (!stream)
        return fail(cudaErrorInvalidResourceHandle);
    if (!n)
        return cudaSuccess;
    if (memory_kind(to, n) != DEVICE)
        return fail(cudaErrorInvalidValue);
    work.kind = MEMSET_NODE;
    work.prepare = [=]() -> Runner { return [=](Stream &) { memset(to, value, n); }; };
    return submit_work(stream, std::move(work));
}

} // namespace

void reset_copies()
{
    watches.clear();
}

} // namespace emu

using namespace emu;

extern "C" {

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind, cudaStream_t handle)
{
    EMU_CALL(PLAIN);
    std::shared_ptr<Stream> stream = find_stream(handle);

    if (!stream)
        return fail(cudaErrorInvalidResourceHandle);
    if (cudaError_t error = check_copy(to, from, n, kind))
        return error;
    if (!n)
        return cudaSuccess;
    bool from_pageable = memory_kind(from, n) == PAGEABLE, to_pageable = memory_kind(to, n) == PAGEABLE;
    if (from_pageable || to_pageable)
        violation("cudaMemcpyAsync %s pageable host memory (%zu bytes)", from_pageable ? "from" : "to", n);
    cudaError_t result = submit_work(stream, from_pageable ? staged_work(to, from, n) : copy_work(to, from, n));
    if (result || !to_pageable || stream->capture)
        return result;
    run_until(stream, stream->submitted);
    return after_wait();
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t n, cudaMemcpyKind kind)
{
    EMU_CALL(WAIT_DEVICE);
    std::shared_ptr<Stream> stream = find_stream(nullptr);

    if (cudaError_t error = check_copy(to, from, n, kind))
        return error;
    if (!n)
        return cudaSuccess;
    cudaError_t result = submit_work(stream, copy_work(to, from, n));
    if (result || (memory_kind(to, n) == DEVICE && memory_kind(from, n) == DEVICE))
        return result;
    run_until(stream, stream->submitted);
    return after_wait();
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t n, cudaStream_t handle)
{
    EMU_CALL(PLAIN);
    return fill(to, value, n, find_stream(handle));
}

cudaError_t cudaMemset(void *to, int value, size_t n)
{
    EMU_CALL(PLAIN);
    return fill(to, value, n, find_stream(nullptr));
}

} // extern "C"
