/* See http.h. One of the two files that know libevent (the other is loop.c): plain events on the descriptor, own
 * buffers. Output is sent at once and the descriptor is only watched for writing when the kernel took less than
 * everything, so that a streamed token costs one system call.
 */
#include "server/http.h"

#include "base/clock.h"
#include "server/access_log.h"
#include "server/context.h"
#include "server/loop.h"
#include "server/routes.h"

#include <errno.h>
#include <event2/event.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define LINGER_US 2000000u
#define OUT_KEEP_BYTES 65536u
#define REQUEST_ID_MAX 128

typedef enum conn_phase {
    CONN_READING = 0, /* between requests, or inside one */
    CONN_SERVING,     /* a request waits for its answer or streams it */
    CONN_FLUSHING,    /* the last answer is on its way */
    CONN_LINGERING,   /* sent; reads on for a moment, since closing with unread input would destroy the answer */
    CONN_DEAD,
} conn_phase;

struct hr_http_conn {
    hr_loop *loop;
    hr_http_conn *previous, *next;
    int fd;
    conn_phase phase;
    struct event *read_event, *write_event, *closed_event;
    bool read_paused, is_processing, has_owner, stream_began, was_stalled;
    hr_http_parser parser;
    hr_buffer in, out;
    size_t in_at, out_at, counted_backlog;
    hr_http_owner owner;
    hr_http_log log;
    uint32_t route_idx;
    int status;
    uint64_t since_us;          /* READING: idle or head since; SERVING: request complete; LINGERING: since */
    uint64_t read_us, write_us; /* last progress */
    char request_id[REQUEST_ID_MAX + 1];
    char peer[64];
};

static void process_input(hr_http_conn *conn);
static void destroy(hr_http_conn *conn, hr_gone why);

static hr_server *server_of(const hr_http_conn *conn)
{
    return conn->loop->server;
}

const hr_http_parser *hr_http_request(const hr_http_conn *conn)
{
    return &conn->parser;
}

hr_loop *hr_http_loop(const hr_http_conn *conn)
{
    return conn->loop;
}

hr_http_log *hr_http_log_of(hr_http_conn *conn)
{
    return &conn->log;
}

void hr_http_set_route(hr_http_conn *conn, uint32_t route_idx)
{
    conn->route_idx = route_idx;
}

void hr_http_set_owner(hr_http_conn *conn, const hr_http_owner *owner)
{
    conn->owner = *owner;
    conn->has_owner = true;
}

hr_http_conn *hr_http_next(const hr_http_conn *conn)
{
    return conn->next;
}

size_t hr_http_backlog(const hr_http_conn *conn)
{
    return conn->out.len - conn->out_at;
}

bool hr_http_stream_began(const hr_http_conn *conn)
{
    return conn->stream_began;
}

uint64_t hr_http_idle_since(const hr_http_conn *conn)
{
    bool is_idle = conn->phase == CONN_READING && !conn->parser.saw_bytes && conn->out_at == conn->out.len;

    return is_idle ? conn->since_us : 0;
}

/* ---------------------------------------------------------------- reading */

/* Reading stops while a client sends ahead of its answers; then only its leaving is watched for. */
static void update_reading(hr_http_conn *conn)
{
    bool pause =
        conn->phase != CONN_DEAD && conn->phase != CONN_LINGERING && conn->in.len - conn->in_at >= HR_HTTP_READ_AHEAD;

    if (conn->phase == CONN_DEAD || pause == conn->read_paused)
        return;
    conn->read_paused = pause;
    if (pause) {
        (void)event_del(conn->read_event);
        (void)event_add(conn->closed_event, NULL);
    } else {
        (void)event_del(conn->closed_event);
        (void)event_add(conn->read_event, NULL);
    }
}

static void read_request_id(hr_http_conn *conn)
{
    size_t len = 0, i;
    const char *value = hr_http_parser_field(&conn->parser, "x-request-id", &len);

    for (i = 0; value && i < len; i++) {
        char c = value[i];
        bool is_safe = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' ||
                       c == '_' || c == '.' || c == ':';

        if (!is_safe)
            value = NULL;
    }
    if (value && len > 0 && len <= REQUEST_ID_MAX) {
        memcpy(conn->request_id, value, len);
        conn->request_id[len] = '\0';
        return;
    }
    memcpy(conn->request_id, "req-", 4);
    hr_server_new_id(server_of(conn), conn->request_id + 4);
}

static void begin_serving(hr_http_conn *conn)
{
    conn->phase = CONN_SERVING;
    conn->since_us = conn->loop->now_us;
    conn->status = 0;
    conn->route_idx = HR_ROUTES_MAX;
    conn->log = (hr_http_log){0};
    read_request_id(conn);
}

static void refuse(hr_http_conn *conn, const hr_api_error *error)
{
    begin_serving(conn);
    conn->parser.keep_alive = false;
    hr_http_reply_error(conn, error);
}

static void feed_parser(hr_http_conn *conn)
{
    bool had_begun = conn->parser.saw_bytes;

    conn->in_at += hr_http_parser_feed(&conn->parser, conn->in.at + conn->in_at, conn->in.len - conn->in_at);
    if (!had_begun && conn->parser.saw_bytes)
        conn->since_us = conn->loop->now_us;
    if (conn->parser.state == HR_HTTP_FAILED) {
        hr_api_error error = conn->parser.error;

        refuse(conn, &error);
    } else if (conn->parser.state == HR_HTTP_COMPLETE) {
        begin_serving(conn);
        hr_route(conn);
    } else if (conn->parser.state == HR_HTTP_HEAD_DONE && conn->parser.expects_continue &&
               conn->in_at == conn->in.len) {
        hr_buffer_add_text(&conn->out, "HTTP/1.1 100 Continue\r\n\r\n");
        (void)hr_http_stream_flush(conn);
    }
}

/* Takes requests out of what was read, one after the other, as long as answers get away. */
static void process_input(hr_http_conn *conn)
{
    if (conn->is_processing)
        return;
    conn->is_processing = true;
    while (conn->phase == CONN_READING && conn->in_at < conn->in.len &&
           hr_http_backlog(conn) < server_of(conn)->options.stream_merge_bytes)
        feed_parser(conn);
    conn->is_processing = false;
    if (conn->phase == CONN_DEAD)
        return;
    if (conn->in_at == conn->in.len || conn->phase == CONN_FLUSHING || conn->phase == CONN_LINGERING) {
        conn->in_at = 0;
        hr_buffer_clear(&conn->in);
    } else if (conn->in_at > 0) {
        memmove(conn->in.at, conn->in.at + conn->in_at, conn->in.len - conn->in_at);
        conn->in.len -= conn->in_at;
        conn->in_at = 0;
    }
    update_reading(conn);
}

static void end_of_input(hr_http_conn *conn)
{
    if (conn->phase == CONN_FLUSHING) /* it asked, closed its half and waits: let it have the answer */
        (void)event_del(conn->read_event);
    else
        destroy(conn, HR_GONE_DISCONNECT);
}

static void on_readable(evutil_socket_t fd, short what, void *arg)
{
    hr_http_conn *conn = arg;
    ssize_t n;

    (void)what;
    conn->loop->now_us = hr_now_us();
    n = recv(fd, conn->loop->read_scratch, HR_HTTP_READ_AHEAD, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n < 0) {
        destroy(conn, HR_GONE_DISCONNECT);
        return;
    }
    if (n == 0) {
        end_of_input(conn);
        return;
    }
    conn->read_us = conn->loop->now_us;
    if (conn->phase == CONN_FLUSHING || conn->phase == CONN_LINGERING)
        return; /* nothing more is wanted */
    hr_buffer_add(&conn->in, conn->loop->read_scratch, (size_t)n);
    if (conn->in.failed) {
        destroy(conn, HR_GONE_DISCONNECT);
        return;
    }
    process_input(conn);
}

static void on_closed(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    destroy(arg, HR_GONE_DISCONNECT);
}

/* ---------------------------------------------------------------- writing */

static void count_backlog(hr_http_conn *conn)
{
    size_t backlog = conn->phase == CONN_DEAD ? 0 : hr_http_backlog(conn);

    if (backlog != conn->counted_backlog) {
        (void)atomic_fetch_add_explicit(&conn->loop->backlog_bytes, backlog - conn->counted_backlog,
                                        memory_order_relaxed);
        conn->counted_backlog = backlog;
    }
}

static void begin_linger(hr_http_conn *conn)
{
    conn->phase = CONN_LINGERING;
    conn->since_us = conn->loop->now_us;
    (void)shutdown(conn->fd, SHUT_WR);
    update_reading(conn);
}

static void all_sent(hr_http_conn *conn)
{
    conn->out_at = 0;
    if (conn->out.capacity > OUT_KEEP_BYTES * 4)
        hr_buffer_deinit(&conn->out);
    hr_buffer_clear(&conn->out);
    if (conn->phase == CONN_FLUSHING)
        begin_linger(conn);
}

/* Sends what the kernel takes. False: the connection is dead now. */
static bool send_output(hr_http_conn *conn)
{
    if (conn->out.failed) {
        destroy(conn, HR_GONE_SLOW);
        return false;
    }
    while (conn->out_at < conn->out.len) {
        ssize_t n = send(conn->fd, conn->out.at + conn->out_at, conn->out.len - conn->out_at, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            if (!event_pending(conn->write_event, EV_WRITE, NULL)) {
                conn->write_us = conn->loop->now_us;
                (void)event_add(conn->write_event, NULL);
            }
            break;
        }
        if (n < 0) {
            destroy(conn, HR_GONE_DISCONNECT);
            return false;
        }
        conn->out_at += (size_t)n;
        conn->write_us = conn->loop->now_us;
    }
    if (conn->out_at == conn->out.len) {
        if (event_pending(conn->write_event, EV_WRITE, NULL))
            (void)event_del(conn->write_event);
        all_sent(conn);
    } else if (conn->out_at > OUT_KEEP_BYTES && conn->out_at > conn->out.len / 2) {
        memmove(conn->out.at, conn->out.at + conn->out_at, conn->out.len - conn->out_at);
        conn->out.len -= conn->out_at;
        conn->out_at = 0;
    }
    count_backlog(conn);
    return true;
}

bool hr_http_stream_flush(hr_http_conn *conn)
{
    const hr_server_options *options = &server_of(conn)->options;
    size_t left_before = conn->counted_backlog; /* by the client: how much came since is not its fault */

    if (conn->phase == CONN_DEAD || !send_output(conn))
        return false;
    if (conn->stream_began && left_before > options->stream_abort_bytes &&
        hr_http_backlog(conn) > options->stream_abort_bytes) {
        destroy(conn, HR_GONE_SLOW);
        return false;
    }
    if (hr_http_backlog(conn) >= options->stream_merge_bytes)
        conn->was_stalled = true;
    return true;
}

static void on_writable(evutil_socket_t fd, short what, void *arg)
{
    hr_http_conn *conn = arg;

    (void)fd;
    (void)what;
    conn->loop->now_us = hr_now_us();
    if (!send_output(conn))
        return;
    if (hr_http_backlog(conn) >= server_of(conn)->options.stream_merge_bytes / 2)
        return;
    if (conn->was_stalled && conn->phase == CONN_SERVING && conn->has_owner) {
        conn->was_stalled = false;
        conn->owner.writable(conn->owner.user);
    } else if (conn->phase == CONN_READING) {
        process_input(conn);
    }
}

/* ---------------------------------------------------------------- answers */

static const char *reason_of(int status)
{
    static const struct {
        int status;
        const char *reason;
    } reasons[] = {{200, "OK"},
                   {204, "No Content"},
                   {400, "Bad Request"},
                   {401, "Unauthorized"},
                   {404, "Not Found"},
                   {405, "Method Not Allowed"},
                   {408, "Request Timeout"},
                   {413, "Content Too Large"},
                   {415, "Unsupported Media Type"},
                   {431, "Request Header Fields Too Large"},
                   {500, "Internal Server Error"},
                   {503, "Service Unavailable"}};

    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++) {
        if (reasons[i].status == status)
            return reasons[i].reason;
    }
    return "Unknown";
}

/* Pages of other origins may read the answer only where the operator said so. */
static void add_cors_fields(hr_http_conn *conn)
{
    const hr_server_options *options = &server_of(conn)->options;
    size_t len = 0;
    const char *origin = hr_http_parser_field(&conn->parser, "origin", &len);

    for (size_t i = 0; origin && i < options->n_allowed_origins; i++) {
        const char *allowed = options->allowed_origins[i];

        if (strcmp(allowed, "*") != 0 && (strlen(allowed) != len || memcmp(allowed, origin, len) != 0))
            continue;
        hr_buffer_add_text(&conn->out, "Access-Control-Allow-Origin: ");
        hr_buffer_add(&conn->out, origin, len);
        hr_buffer_add_text(&conn->out, "\r\nVary: Origin\r\nAccess-Control-Expose-Headers: x-request-id\r\n");
        return;
    }
}

static void add_head(hr_http_conn *conn, int status, const char *content_type, const char *extra_fields)
{
    hr_buffer *out = &conn->out;

    if (conn->out_at == out->len)
        conn->write_us = conn->loop->now_us;
    if (hr_server_phase(server_of(conn)) != HR_PHASE_SERVE)
        conn->parser.keep_alive = false;
    conn->status = status;
    hr_buffer_printf(out, "HTTP/1.1 %d %s\r\n", status, reason_of(status));
    if (content_type)
        hr_buffer_printf(out, "Content-Type: %s\r\n", content_type);
    hr_buffer_printf(out, "x-request-id: %s\r\n", conn->request_id);
    add_cors_fields(conn);
    if (extra_fields)
        hr_buffer_add_text(out, extra_fields);
    if (!conn->parser.keep_alive)
        hr_buffer_add_text(out, "Connection: close\r\n");
    else if (conn->parser.is_http10)
        hr_buffer_add_text(out, "Connection: keep-alive\r\n");
}

static void write_access_log(hr_http_conn *conn)
{
    hr_server *server = server_of(conn);
    hr_access_entry entry = {.request_id = conn->request_id,
                             .route = hr_route_name(conn->route_idx),
                             .method = conn->parser.method,
                             .model = server->model_name,
                             .peer = conn->peer,
                             .status = conn->status,
                             .total_us = conn->loop->now_us - conn->since_us,
                             .log = &conn->log};

    hr_count_http(server, conn->route_idx, conn->status);
    if (server->options.log_requests && hr_route_is_logged(conn->route_idx))
        hr_access_log(server->options.log_format, &entry);
}

/* The request is over: the next one may begin. The caller must not touch the connection afterwards. */
static void end_request(hr_http_conn *conn)
{
    bool keep_alive = conn->parser.keep_alive;

    write_access_log(conn);
    conn->has_owner = conn->stream_began = conn->was_stalled = false;
    hr_http_parser_reset(&conn->parser);
    conn->phase = keep_alive ? CONN_READING : CONN_FLUSHING;
    conn->since_us = conn->read_us = conn->loop->now_us;
    if (!send_output(conn))
        return;
    process_input(conn);
}

void hr_http_reply(hr_http_conn *conn, int status, const char *content_type, const char *extra_fields, const char *body,
                   size_t len)
{
    if (conn->phase == CONN_DEAD)
        return;
    conn->loop->now_us = hr_now_us();
    add_head(conn, status, content_type, extra_fields);
    if (status != 204)
        hr_buffer_printf(&conn->out, "Content-Length: %zu\r\n", len);
    hr_buffer_add_text(&conn->out, "\r\n");
    if (strcmp(conn->parser.method, "HEAD") != 0)
        hr_buffer_add(&conn->out, body, len);
    end_request(conn);
}

void hr_http_reply_error(hr_http_conn *conn, const hr_api_error *error)
{
    hr_server *server = server_of(conn);
    hr_buffer body = {0};
    char extra[64] = "";

    (void)atomic_fetch_add_explicit(&server->failures[error->code], 1, memory_order_relaxed);
    conn->log.code = hr_api_code_text(error->code);
    if (hr_api_http_status(error->code) == 503)
        (void)snprintf(extra, sizeof extra, "Retry-After: %u\r\n", atomic_load(&server->retry_after_s));
    else if (error->code == HR_API_INVALID_KEY)
        (void)snprintf(extra, sizeof extra, "WWW-Authenticate: Bearer\r\n");
    hr_api_error_json(&body, error);
    hr_http_reply(conn, hr_api_http_status(error->code), "application/json", extra, body.at ? body.at : "", body.len);
    hr_buffer_deinit(&body);
}

void hr_http_stream_begin(hr_http_conn *conn)
{
    if (conn->phase == CONN_DEAD)
        return;
    if (conn->parser.is_http10)
        conn->parser.keep_alive = false; /* its end is the end of the connection */
    add_head(conn, 200, "text/event-stream; charset=utf-8", "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n");
    hr_buffer_add_text(&conn->out, conn->parser.is_http10 ? "\r\n" : "Transfer-Encoding: chunked\r\n\r\n");
    conn->stream_began = true;
}

void hr_http_stream_data(hr_http_conn *conn, const char *bytes, size_t len)
{
    char size[20];
    int n;

    if (conn->phase == CONN_DEAD || len == 0)
        return;
    if (conn->parser.is_http10) {
        hr_buffer_add(&conn->out, bytes, len);
        return;
    }
    n = snprintf(size, sizeof size, "%zx\r\n", len);
    hr_buffer_add(&conn->out, size, (size_t)n);
    hr_buffer_add(&conn->out, bytes, len);
    hr_buffer_add(&conn->out, "\r\n", 2);
}

void hr_http_stream_end(hr_http_conn *conn, bool close_after)
{
    if (conn->phase == CONN_DEAD)
        return;
    conn->loop->now_us = hr_now_us();
    if (!conn->parser.is_http10)
        hr_buffer_add_text(&conn->out, "0\r\n\r\n");
    if (close_after)
        conn->parser.keep_alive = false;
    end_request(conn);
}

/* ---------------------------------------------------------------- life */

/* Tells the owner, closes the descriptor, and leaves the memory to the loop: callers up the stack may still look at it.
 */
static void destroy(hr_http_conn *conn, hr_gone why)
{
    hr_server *server = server_of(conn);
    bool was_serving = conn->phase == CONN_SERVING;

    if (conn->phase == CONN_DEAD)
        return;
    conn->phase = CONN_DEAD;
    count_backlog(conn);
    if (conn->has_owner) {
        conn->has_owner = false;
        conn->owner.gone(conn->owner.user, why);
    }
    if (was_serving) {
        conn->log.cancelled = true;
        if (!conn->stream_began)
            conn->status = 499;
        (void)atomic_fetch_add_explicit(&server->cancelled[why], 1, memory_order_relaxed);
        write_access_log(conn);
    }
    event_free(conn->read_event);
    event_free(conn->write_event);
    event_free(conn->closed_event);
    (void)close(conn->fd);
    if (conn->previous)
        conn->previous->next = conn->next;
    else
        conn->loop->conns = conn->next;
    if (conn->next)
        conn->next->previous = conn->previous;
    conn->next = conn->loop->dead;
    conn->loop->dead = conn;
    hr_http_parser_deinit(&conn->parser);
    hr_buffer_deinit(&conn->in);
    hr_buffer_deinit(&conn->out);
    conn->in_at = conn->out_at = 0;
    (void)atomic_fetch_sub(&server->n_connections, 1);
    hr_loop_bury(conn->loop);
}

void hr_http_destroy(hr_http_conn *conn)
{
    destroy(conn, HR_GONE_SHUTDOWN);
}

bool hr_http_close_if_idle(hr_http_conn *conn)
{
    if (!hr_http_idle_since(conn))
        return false;
    destroy(conn, HR_GONE_SHUTDOWN);
    return true;
}

void hr_http_shutdown(hr_http_conn *conn)
{
    if (conn->phase == CONN_READING && conn->out_at == conn->out.len)
        destroy(conn, HR_GONE_SHUTDOWN);
    else if (conn->phase == CONN_SERVING && conn->has_owner)
        conn->owner.shutdown(conn->owner.user);
}

static void tick_reading(hr_http_conn *conn, uint64_t now_us)
{
    const hr_server_options *options = &server_of(conn)->options;
    bool in_head = conn->parser.state == HR_HTTP_IN_HEAD;
    hr_api_error error;

    if (!conn->parser.saw_bytes) {
        if (now_us - conn->since_us > (uint64_t)options->idle_timeout_ms * 1000)
            destroy(conn, HR_GONE_DISCONNECT);
    } else if (in_head && now_us - conn->since_us > (uint64_t)options->header_timeout_ms * 1000) {
        (void)hr_api_fail(&error, HR_API_REQUEST_TIMEOUT, NULL, "The request head took longer than %u ms to arrive.",
                          options->header_timeout_ms);
        refuse(conn, &error);
    } else if (!in_head && now_us - conn->read_us > (uint64_t)options->body_timeout_ms * 1000) {
        (void)hr_api_fail(&error, HR_API_REQUEST_TIMEOUT, NULL, "No part of the body arrived for %u ms.",
                          options->body_timeout_ms);
        refuse(conn, &error);
    }
}

void hr_http_tick(hr_http_conn *conn, uint64_t now_us)
{
    const hr_server_options *options = &server_of(conn)->options;

    if (conn->phase == CONN_DEAD)
        return;
    if (conn->out_at < conn->out.len && now_us - conn->write_us > (uint64_t)options->slow_client_timeout_ms * 1000)
        destroy(conn, HR_GONE_SLOW);
    else if (conn->phase == CONN_READING)
        tick_reading(conn, now_us);
    else if (conn->phase == CONN_SERVING && conn->has_owner)
        conn->owner.tick(conn->owner.user, now_us);
    else if (conn->phase == CONN_LINGERING && now_us - conn->since_us > LINGER_US)
        destroy(conn, HR_GONE_DISCONNECT);
}

void hr_http_free_dead(hr_http_conn *conn)
{
    free(conn);
}

void hr_http_accept(hr_loop *loop, int fd, const char *peer)
{
    hr_http_conn *conn = calloc(1, sizeof *conn);
    const hr_server_options *options = &loop->server->options;
    int on = 1;

    if (!conn) {
        (void)close(fd);
        return;
    }
    conn->loop = loop;
    conn->fd = fd;
    conn->since_us = conn->read_us = conn->write_us = loop->now_us;
    (void)snprintf(conn->peer, sizeof conn->peer, "%s", peer);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on,
                     sizeof on); /* not for unix sockets, where it fails harmlessly */
    hr_http_parser_init(&conn->parser, &(hr_http_limits){options->max_body_bytes, options->max_header_bytes,
                                                         options->max_header_fields, options->max_target_bytes});
    conn->read_event = event_new(loop->base, fd, EV_READ | EV_PERSIST, on_readable, conn);
    conn->write_event = event_new(loop->base, fd, EV_WRITE | EV_PERSIST, on_writable, conn);
    conn->closed_event = event_new(loop->base, fd, EV_CLOSED | EV_PERSIST, on_closed, conn);
    if (!conn->read_event || !conn->write_event || !conn->closed_event || event_add(conn->read_event, NULL) != 0) {
        if (conn->read_event)
            event_free(conn->read_event);
        if (conn->write_event)
            event_free(conn->write_event);
        if (conn->closed_event)
            event_free(conn->closed_event);
        (void)close(fd);
        free(conn);
        return;
    }
    conn->next = loop->conns;
    if (conn->next)
        conn->next->previous = conn;
    loop->conns = conn;
    (void)atomic_fetch_add(&loop->server->n_connections, 1);
}
