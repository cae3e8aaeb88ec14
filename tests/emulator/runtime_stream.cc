// Streams and events of the runtime stand-in.
//
// A stream is a queue; its operations run when somebody waits for one of them (or at once, when not lazy). An operation
// names those of other streams that it comes after: cudaStreamWaitEvent and the default stream's rules say nothing
// more. What no wait orders may run in any order, and with a seed it does.
#include <chrono>

#include "runtime_internal.h"

struct CUevent_st {
    unsigned flags;
    std::shared_ptr<emu::Stream> stream; // of the last record, NULL before
    uint64_t operation;                  // that the record was
    std::shared_ptr<double> ms;          // when it ran
    std::shared_ptr<emu::Graph> capture; // the record was captured into this
    std::vector<size_t> tail;
};

namespace emu
{

namespace
{

std::map<cudaStream_t, std::shared_ptr<Stream>> streams;
std::vector<std::shared_ptr<Stream>> orphans; // destroyed with work left
std::set<cudaEvent_t> events;

std::shared_ptr<Stream> null_stream()
{
    static std::shared_ptr<Stream> stream = [] {
        auto s = std::make_shared<Stream>();
        s->is_null = true;
        return s;
    }();
    return stream;
}

void run_one(const std::shared_ptr<Stream> &stream)
{
    Op op = std::move(stream->queue.front());

    stream->queue.pop_front();
    for (auto &before : op.after)
        run_until(before.first, before.second);
    if (!sticky())
        op.run(*stream);
    stream->done++;
}

std::vector<std::shared_ptr<Stream>> streams_with_work()
{
    std::vector<std::shared_ptr<Stream>> all;

    if (!null_stream()->queue.empty())
        all.push_back(null_stream());
    for (auto &entry : streams)
        if (!entry.second->queue.empty())
            all.push_back(entry.second);
    for (auto &orphan : orphans)
        if (!orphan->queue.empty())
            all.push_back(orphan);
    return all;
}

double now_ms()
{
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

bool is_event(cudaEvent_t event)
{
    return events.count(event) != 0;
}

bool is_done(cudaEvent_t event)
{
    return !event->stream || event->stream->done >= event->operation;
}

// Polling ends: each question lets the device get on by one operation.
cudaError_t query(const std::shared_ptr<Stream> &stream, uint64_t operation)
{
    if (stream->done < operation)
        run_one(stream);
    if (sticky())
        return after_wait();
    return stream->done >= operation ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t new_stream(cudaStream_t *handle, unsigned flags, int priority)
{
    if (flags & ~unsigned(cudaStreamNonBlocking))
        return fail(cudaErrorInvalidValue);
    auto stream = std::make_shared<Stream>();
    stream->is_blocking = !(flags & cudaStreamNonBlocking);
    stream->priority = priority;
    *handle = stream->handle();
    streams[*handle] = stream;
    return cudaSuccess;
}

cudaError_t record(cudaEvent_t event, cudaStream_t handle)
{
    std::shared_ptr<Stream> stream = find_stream(handle);

    if (!stream || !is_event(event))
        return fail(cudaErrorInvalidResourceHandle);
    event->capture = stream->capture;
    event->tail = stream->tail;
    if (stream->capture)
        return cudaSuccess;
    auto ms = std::make_shared<double>(0);
    event->ms = ms;
    submit(stream, {[ms](Stream &s) {
                        *ms = now_ms();
                        s.last_grid = 0;
                    },
                    {}});
    event->stream = stream;
    event->operation = stream->submitted;
    return cudaSuccess;
}

// The stream's next operations come after an event that was captured: the stream joins the capture.
cudaError_t wait_captured(Stream &stream, cudaEvent_t event)
{
    if (!event->capture->origin)
        return fail(cudaErrorCapturedEvent);
    if (stream.is_null)
        return fail(cudaErrorStreamCaptureImplicit);
    if (stream.capture && stream.capture != event->capture) {
        invalidate(stream);
        return fail(cudaErrorStreamCaptureMerge);
    }
    if (!stream.capture)
        stream.tail.clear();
    stream.capture = event->capture;
    std::set<size_t> tail(stream.tail.begin(), stream.tail.end());
    tail.insert(event->tail.begin(), event->tail.end());
    stream.tail.assign(tail.begin(), tail.end());
    return cudaSuccess;
}

} // namespace

std::shared_ptr<Stream> find_stream(cudaStream_t handle)
{
    if (uintptr_t(handle) <= uintptr_t(cudaStreamPerThread))
        return null_stream();
    auto found = streams.find(handle);
    return found == streams.end() ? nullptr : found->second;
}

void submit(const std::shared_ptr<Stream> &stream, Op op)
{
    if (stream->is_null) {
        for (auto &entry : streams)
            if (entry.second->is_blocking && entry.second->done < entry.second->submitted)
                op.after.emplace_back(entry.second, entry.second->submitted);
    } else if (stream->is_blocking && null_stream()->done < null_stream()->submitted) {
        op.after.emplace_back(null_stream(), null_stream()->submitted);
    }
    stream->queue.push_back(std::move(op));
    stream->submitted++;
    if (!is_lazy)
        run_until(stream, stream->submitted);
}

void run_until(const std::shared_ptr<Stream> &stream, uint64_t operation)
{
    while (stream->done < operation && !stream->queue.empty())
        run_one(stream);
}

void run_all()
{
    for (;;) {
        auto all = streams_with_work();
        if (all.empty())
            break;
        run_one(all[random_below(all.size())]);
    }
    orphans.clear();
}

cudaError_t after_wait()
{
    return fail(sticky());
}

std::vector<std::shared_ptr<Stream>> captured_streams()
{
    std::vector<std::shared_ptr<Stream>> all;

    for (auto &entry : streams)
        if (entry.second->capture)
            all.push_back(entry.second);
    return all;
}

size_t n_stream_handles()
{
    return streams.size() + events.size();
}

void reset_streams()
{
    for (auto &entry : streams) {
        entry.second->queue.clear();
        entry.second->capture = nullptr;
    }
    null_stream()->queue.clear();
    null_stream()->submitted = null_stream()->done = 0;
    streams.clear();
    orphans.clear();
    for (cudaEvent_t event : events)
        delete event;
    events.clear();
}

} // namespace emu

using namespace emu;

extern "C" {

cudaError_t cudaStreamCreate(cudaStream_t *handle)
{
    EMU_CALL(MAKE);
    return new_stream(handle, 0, 0);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *handle, unsigned flags)
{
    EMU_CALL(MAKE);
    return new_stream(handle, flags, 0);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *handle, unsigned flags, int priority)
{
    EMU_CALL(MAKE);
    return new_stream(handle, flags, priority);
}

cudaError_t cudaStreamGetPriority(cudaStream_t handle, int *priority)
{
    EMU_CALL(PLAIN);
    std::shared_ptr<Stream> stream = find_stream(handle);

    if (!stream)
        return fail(cudaErrorInvalidResourceHandle);
    *priority = stream->priority;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    EMU_CALL(PLAIN);
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t handle)
{
    EMU_CALL(MAKE);
    std::shared_ptr<Stream> stream = find_stream(handle);

    if (!stream || stream->is_null)
        return fail(cudaErrorInvalidResourceHandle);
    if (stream->capture) {
        invalidate(*stream);
        if (stream->capture->origin == stream)
            stream->capture->origin = nullptr; // the two would keep each other
        stream->capture = nullptr;
    }
    if (!stream->queue.empty())
        orphans.push_back(stream);
    streams.erase(handle);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle)
{
    EMU_CALL(WAIT);
    std::shared_ptr<Stream> stream = find_stream(handle);

    if (!stream)
        return fail(cudaErrorInvalidResourceHandle);
    if (stream->capture) {
        invalidate(*stream);
        return fail(cudaErrorStreamCaptureUnsupported);
    }
    if (stream->is_null)
        for (auto &entry : streams)
            if (entry.second->is_blocking)
                run_until(entry.second, entry.second->submitted);
    run_until(stream, stream->submitted);
    return after_wait();
}

cudaError_t cudaStreamQuery(cudaStream_t handle)
{
    EMU_CALL(PLAIN);
    std::shared_ptr<Stream> stream = find_stream(handle);

    if (!stream)
        return fail(cudaErrorInvalidResourceHandle);
    if (stream->capture) {
        invalidate(*stream);
        return fail(cudaErrorStreamCaptureUnsupported);
    }
    return query(stream, stream->submitted);
}

cudaError_t cudaDeviceSynchronize(void)
{
    EMU_CALL(WAIT_DEVICE);
    run_all();
    return after_wait();
}

cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void *data)
{
    EMU_CALL(PLAIN);
    std::shared_ptr<Stream> stream = find_stream(handle);
    Work work;

    if (!stream || !function)
        return fail(stream ? cudaErrorInvalidValue : cudaErrorInvalidResourceHandle);
    work.kind = HOST_NODE;
    work.prepare = [=]() -> Runner { return [=](Stream &) { function(data); }; };
    return submit_work(stream, std::move(work));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    EMU_CALL(MAKE);
    if (flags & ~unsigned(cudaEventBlockingSync | cudaEventDisableTiming))
        return fail(cudaErrorInvalidValue);
    *event = new CUevent_st{flags, nullptr, 0, nullptr, nullptr, {}};
    events.insert(*event);
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    EMU_CALL(MAKE);
    *event = new CUevent_st{0, nullptr, 0, nullptr, nullptr, {}};
    events.insert(*event);
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    EMU_CALL(MAKE);
    if (!events.erase(event))
        return fail(cudaErrorInvalidResourceHandle);
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle)
{
    EMU_CALL(PLAIN);
    return record(event, handle);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned)
{
    EMU_CALL(PLAIN);
    std::shared_ptr<Stream> stream = find_stream(handle);

    if (!stream || !is_event(event))
        return fail(cudaErrorInvalidResourceHandle);
    if (event->capture)
        return wait_captured(*stream, event);
    if (stream->capture) {
        invalidate(*stream);
        return fail(cudaErrorStreamCaptureIsolation);
    }
    if (event->stream && event->stream != stream)
        submit(stream, {[](Stream &s) { s.last_grid = 0; }, {{event->stream, event->operation}}});
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    EMU_CALL(PLAIN);
    if (!is_event(event))
        return fail(cudaErrorInvalidResourceHandle);
    if (event->capture)
        return fail(cudaErrorCapturedEvent);
    if (event->stream)
        run_until(event->stream, event->operation);
    return after_wait();
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    EMU_CALL(PLAIN);
    if (!is_event(event))
        return fail(cudaErrorInvalidResourceHandle);
    if (event->capture)
        return fail(cudaErrorCapturedEvent);
    return event->stream ? query(event->stream, event->operation) : cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    EMU_CALL(PLAIN);
    for (cudaEvent_t event : {from, to})
        if (!is_event(event) || !event->stream || (event->flags & cudaEventDisableTiming))
            return fail(cudaErrorInvalidResourceHandle);
    if (!is_done(from) || !is_done(to))
        return cudaErrorNotReady;
    *ms = static_cast<float>(*to->ms - *from->ms);
    return cudaSuccess;
}

} // extern "C"
