/* See loop.h. The tick runs only while there are connections, so that an idle server sleeps. */
#include "server/loop.h"

#include "base/clock.h"
#include "base/status.h"
#include "server/call.h"
#include "server/context.h"

#include <arpa/inet.h>
#include <errno.h>
#include <event2/event.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define TICK_MS 250
#define ACCEPT_AT_ONCE 8
#define FAREWELL_US 500000u /* at the end: how long answers may take to get away */

static void arm_tick(hr_loop *loop)
{
    struct timeval interval = {0, TICK_MS * 1000};

    if (!event_pending(loop->tick, EV_TIMEOUT, NULL))
        (void)event_add(loop->tick, &interval);
}

void hr_loop_bury(hr_loop *loop)
{
    event_active(loop->reap_event, EV_TIMEOUT, 0);
}

static void on_reap(evutil_socket_t fd, short what, void *arg)
{
    hr_loop *loop = arg;

    (void)fd;
    (void)what;
    while (loop->dead) {
        hr_http_conn *conn = loop->dead;

        loop->dead = hr_http_next(conn);
        hr_http_free_dead(conn);
    }
}

/* ---------------------------------------------------------------- new connections */

static void pause_listeners(hr_loop *loop, bool pause)
{
    loop->listeners_paused = pause;
    for (size_t i = 0; i < loop->n_listeners; i++) {
        if (pause)
            (void)event_del(loop->listeners[i]);
        else
            (void)event_add(loop->listeners[i], NULL);
    }
}

static void describe_peer(const struct sockaddr_storage *address, char *out, size_t capacity)
{
    char text[INET6_ADDRSTRLEN] = "";

    if (address->ss_family == AF_INET) {
        struct sockaddr_in in;

        memcpy(&in, address, sizeof in);
        (void)inet_ntop(AF_INET, &in.sin_addr, text, sizeof text);
    } else if (address->ss_family == AF_INET6) {
        struct sockaddr_in6 in6;

        memcpy(&in6, address, sizeof in6);
        (void)inet_ntop(AF_INET6, &in6.sin6_addr, text, sizeof text);
    }
    (void)snprintf(out, capacity, "%s", text[0] ? text : "unix");
}

/* Makes room by closing the kept connection that was idle longest. */
static bool close_oldest_idle(hr_loop *loop)
{
    hr_http_conn *oldest = NULL;

    for (hr_http_conn *conn = loop->conns; conn; conn = hr_http_next(conn)) {
        uint64_t since = hr_http_idle_since(conn);

        if (since && (!oldest || since < hr_http_idle_since(oldest)))
            oldest = conn;
    }
    return oldest && hr_http_close_if_idle(oldest);
}

static void refuse_connection(hr_loop *loop, int fd)
{
    hr_api_error error;
    hr_buffer body = {0}, head = {0};

    (void)hr_api_fail(&error, HR_API_TOO_MANY_CONNECTIONS, NULL, "The server has as many connections as it accepts.");
    (void)atomic_fetch_add_explicit(&loop->server->failures[error.code], 1, memory_order_relaxed);
    hr_api_error_json(&body, &error);
    hr_buffer_printf(&head,
                     "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
                     "Connection: close\r\nContent-Length: %zu\r\n\r\n",
                     body.len);
    hr_buffer_add(&head, body.at ? body.at : "", body.len);
    if (!head.failed && send(fd, head.at, head.len, MSG_NOSIGNAL) < 0) {
        /* it gets no explanation then */
    }
    hr_buffer_deinit(&body);
    hr_buffer_deinit(&head);
    (void)close(fd);
}

static void on_acceptable(evutil_socket_t listener, short what, void *arg)
{
    hr_loop *loop = arg;
    hr_server *server = loop->server;

    (void)what;
    loop->now_us = hr_now_us();
    for (int i = 0; i < ACCEPT_AT_ONCE; i++) {
        struct sockaddr_storage address = {0};
        socklen_t len = sizeof address;
        char peer[64];
        int fd = accept4(listener, (struct sockaddr *)&address, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
                (void)close_oldest_idle(loop);
                pause_listeners(loop, true);
            }
            break;
        }
        if (atomic_load(&server->n_connections) >= server->options.max_connections && !close_oldest_idle(loop)) {
            refuse_connection(loop, fd);
            continue;
        }
        describe_peer(&address, peer, sizeof peer);
        hr_http_accept(loop, fd, peer);
    }
    arm_tick(loop);
}

/* ---------------------------------------------------------------- time, wake-ups, streams */

static void on_tick(evutil_socket_t fd, short what, void *arg)
{
    hr_loop *loop = arg;
    hr_http_conn *next;

    (void)fd;
    (void)what;
    loop->now_us = hr_now_us();
    if (loop->listeners_paused && !loop->shutdown_seen)
        pause_listeners(loop, false);
    for (hr_http_conn *conn = loop->conns; conn; conn = next) {
        next = hr_http_next(conn);
        hr_http_tick(conn, loop->now_us);
    }
    if (loop->conns)
        arm_tick(loop);
}

void hr_loop_forget_stream(hr_loop *loop, const headrace_stream *stream)
{
    for (size_t i = 0; i < loop->n_taken; i++) {
        if (loop->taken[i] == stream)
            loop->taken[i] = NULL;
    }
}

static void on_streams(evutil_socket_t fd, short what, void *arg)
{
    hr_loop *loop = arg;

    (void)fd;
    (void)what;
    loop->now_us = hr_now_us();
    loop->n_taken = headrace_queue_take(loop->queue, loop->taken, HR_LOOP_TAKE_MAX);
    for (size_t i = 0; i < loop->n_taken; i++) {
        if (loop->taken[i])
            hr_call_pump(headrace_stream_user(loop->taken[i]));
    }
    if (loop->n_taken == HR_LOOP_TAKE_MAX) /* more may wait, and their wake-up is used up */
        event_active(loop->queue_event, EV_READ, 0);
    loop->n_taken = 0;
}

static void on_wake(evutil_socket_t fd, short what, void *arg)
{
    hr_loop *loop = arg;
    hr_phase phase;
    uint64_t count;
    hr_http_conn *next;

    (void)what;
    if (read(fd, &count, sizeof count) < 0) {
        /* woken for nothing: the phase says what to do */
    }
    /* Only now: a phase that is set after this load writes the descriptor again, while one set between an earlier load
     * and the read would be lost together with its wake-up. */
    phase = hr_server_phase(loop->server);
    loop->now_us = hr_now_us();
    if (phase >= HR_PHASE_SHUTDOWN && !loop->shutdown_seen) {
        loop->shutdown_seen = true;
        pause_listeners(loop, true);
        for (hr_http_conn *conn = loop->conns; conn; conn = next) {
            next = hr_http_next(conn);
            hr_http_shutdown(conn);
        }
    }
    if (phase == HR_PHASE_STOP)
        (void)event_base_loopbreak(loop->base);
}

/* Answers that the kernel has not taken yet get a moment; then everything is closed. */
static void say_farewell(hr_loop *loop)
{
    uint64_t deadline_us = hr_now_us() + FAREWELL_US;
    hr_http_conn *next;

    for (;;) {
        bool has_output = false;

        for (hr_http_conn *conn = loop->conns; conn; conn = hr_http_next(conn))
            has_output |= hr_http_backlog(conn) > 0;
        if (!has_output || hr_now_us() > deadline_us)
            break;
        (void)usleep(2000);
        (void)event_base_loop(loop->base, EVLOOP_NONBLOCK);
    }
    for (hr_http_conn *conn = loop->conns; conn; conn = next) {
        next = hr_http_next(conn);
        hr_http_destroy(conn);
    }
}

static void *loop_main(void *arg)
{
    hr_loop *loop = arg;
    clockid_t clock;

    if (pthread_getcpuclockid(pthread_self(), &clock) ==
        0) /* said by the thread itself: others may ask before start returns */
        atomic_store(&loop->cpu_clock, (int)clock);
    while (hr_server_phase(loop->server) != HR_PHASE_STOP)
        (void)event_base_loop(loop->base, EVLOOP_NO_EXIT_ON_EMPTY);
    say_farewell(loop);
    return NULL;
}

/* ---------------------------------------------------------------- life */

headrace_status hr_loop_init(hr_loop *loop, hr_server *server, headrace_error *err)
{
    *loop = (hr_loop){.server = server, .wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
    loop->base = event_base_new();
    loop->read_scratch = malloc(HR_HTTP_READ_AHEAD);
    if (loop->wake_fd < 0 || !loop->base || !loop->read_scratch)
        return hr_fail(err, HEADRACE_E_MEMORY, "cannot make an event loop: %s", strerror(errno));
    HR_PASS(headrace_queue_create(&loop->queue, err));
    loop->tick = event_new(loop->base, -1, 0, on_tick, loop);
    loop->reap_event = event_new(loop->base, -1, 0, on_reap, loop);
    loop->wake_event = event_new(loop->base, loop->wake_fd, EV_READ | EV_PERSIST, on_wake, loop);
    loop->queue_event = event_new(loop->base, headrace_queue_fd(loop->queue), EV_READ | EV_PERSIST, on_streams, loop);
    if (!loop->tick || !loop->reap_event || !loop->wake_event || !loop->queue_event ||
        event_add(loop->wake_event, NULL) != 0 || event_add(loop->queue_event, NULL) != 0)
        return hr_fail(err, HEADRACE_E_MEMORY, "cannot make an event loop");
    for (size_t i = 0; i < server->n_listen_fds; i++) {
        struct event *event = event_new(loop->base, server->listen_fds[i], EV_READ | EV_PERSIST, on_acceptable, loop);

        if (!event || event_add(event, NULL) != 0)
            return hr_fail(err, HEADRACE_E_MEMORY, "cannot watch a listening socket");
        loop->listeners[loop->n_listeners++] = event;
    }
    return HEADRACE_OK;
}

headrace_status hr_loop_start(hr_loop *loop, headrace_error *err)
{
    int code = pthread_create(&loop->thread, NULL, loop_main, loop);

    if (code != 0)
        return hr_fail(err, HEADRACE_E_INTERNAL, "cannot start an I/O thread: %s", strerror(code));
    loop->has_thread = true;
    return HEADRACE_OK;
}

void hr_loop_wake(hr_loop *loop)
{
    uint64_t one = 1;

    if (write(loop->wake_fd, &one, sizeof one) < 0) {
        /* the counter is full: the loop is awake anyway */
    }
}

static void free_event(struct event *event)
{
    if (event)
        event_free(event);
}

void hr_loop_deinit(hr_loop *loop)
{
    if (loop->has_thread)
        (void)pthread_join(loop->thread, NULL);
    if (loop->reap_event)
        on_reap(-1, 0, loop);
    for (size_t i = 0; i < loop->n_listeners; i++)
        free_event(loop->listeners[i]);
    free_event(loop->tick);
    free_event(loop->reap_event);
    free_event(loop->wake_event);
    free_event(loop->queue_event);
    if (loop->queue)
        headrace_queue_destroy(loop->queue);
    if (loop->base)
        event_base_free(loop->base);
    if (loop->wake_fd >= 0)
        (void)close(loop->wake_fd);
    free(loop->read_scratch);
    hr_buffer_deinit(&loop->scratch);
}

double hr_loop_cpu_seconds(hr_loop *loop)
{
    struct timespec time;
    int clock = atomic_load(&loop->cpu_clock);

    if (clock == 0 || clock_gettime((clockid_t)clock, &time) != 0)
        return 0.0;
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}
