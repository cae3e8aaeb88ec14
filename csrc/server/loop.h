/* An I/O thread: one event base, its connections, its queue of streams.
 *
 * Every loop watches the same listening sockets and accepts a few connections at a time, so that connections spread
 * without a second listener on the port (SO_REUSEPORT would let two servers share it unnoticed). Everything a
 * connection owns is touched by its loop's thread only; other threads speak to a loop through its wake descriptor.
 */
#ifndef HR_SERVER_LOOP_H
#define HR_SERVER_LOOP_H

#include "base/buffer.h"
#include "headrace.h"
#include "server/http.h"

#include <pthread.h>
#include <stdatomic.h>

struct event;
struct event_base;
struct hr_server;

#define HR_LOOP_LISTENERS_MAX 8
#define HR_LOOP_TAKE_MAX 256 /* streams served before the loop looks at its sockets again */

typedef struct hr_loop {
    struct hr_server *server;
    struct event_base *base;
    struct event *listeners[HR_LOOP_LISTENERS_MAX];
    size_t n_listeners;
    struct event *tick, *wake_event, *queue_event, *reap_event;
    bool listeners_paused; /* out of descriptors: until the next tick */
    int wake_fd;
    headrace_queue *queue;
    headrace_stream *taken[HR_LOOP_TAKE_MAX]; /* the batch being served; entries of destroyed streams become NULL */
    size_t n_taken;
    hr_http_conn *conns, *dead; /* dead ones are freed when no caller can hold them any more */
    uint64_t now_us;            /* at the last wake-up */
    char *read_scratch;         /* HR_HTTP_READ_AHEAD bytes */
    hr_buffer scratch;          /* for writers; never kept across calls */
    pthread_t thread;
    bool has_thread;
    atomic_int cpu_clock; /* of the running thread; 0 before */
    atomic_uint_fast64_t backlog_bytes;
    bool shutdown_seen;
} hr_loop;

headrace_status hr_loop_init(hr_loop *loop, struct hr_server *server, headrace_error *err);
/* Starts the thread. */
headrace_status hr_loop_start(hr_loop *loop, headrace_error *err);
/* Any thread: makes the loop look at the server's phase. */
void hr_loop_wake(hr_loop *loop);
/* Waits for the thread (after the server's phase became HR_PHASE_STOP) and frees everything. */
void hr_loop_deinit(hr_loop *loop);
/* A connection died: its memory is freed when the stack is unwound. */
void hr_loop_bury(hr_loop *loop);
/* CPU time of the loop's thread, seconds. */
double hr_loop_cpu_seconds(hr_loop *loop);
/* A stream is about to be destroyed: it must not be served from the current batch. */
void hr_loop_forget_stream(hr_loop *loop, const headrace_stream *stream);

#endif
