/* One client connection: reading under limits and deadlines, answers in order, streams with backpressure, and noticing
 * that the client has left.
 *
 * A connection serves one request at a time; what a client pipelines behind it waits (at most HR_HTTP_READ_AHEAD bytes
 * of it are read). While a request is served the connection has an owner (a call) which is told when the client leaves,
 * when unsent output fell below the merge limit, and the time. All functions run on the connection's own loop thread.
 */
#ifndef HR_SERVER_HTTP_H
#define HR_SERVER_HTTP_H

#include "server/http_parser.h"

#define HR_HTTP_READ_AHEAD 65536

struct hr_loop;
typedef struct hr_http_conn hr_http_conn;

/* Why a client is gone; also a metric label. */
typedef enum hr_gone {
    HR_GONE_DISCONNECT = 0,
    HR_GONE_SLOW,     /* took nothing for too long, or let too much pile up */
    HR_GONE_SHUTDOWN, /* the server ends */
    HR_GONE_N
} hr_gone;

typedef struct hr_http_owner {
    void (*gone)(void *user, hr_gone why);     /* the connection is closing: drop everything, send nothing */
    void (*writable)(void *user);              /* after hr_http_backlog had reached the merge limit */
    void (*tick)(void *user, uint64_t now_us); /* about four times a second */
    void (*shutdown)(void *user);              /* end the answer now, with an error */
    void *user;
} hr_http_owner;

/* What the access log says about a request beyond HTTP; filled by whoever serves it. */
typedef struct hr_http_log {
    const char *code;   /* error code or NULL */
    const char *finish; /* finish_reason or NULL */
    uint32_t n_prompt_tokens, n_cached_tokens, n_completion_tokens;
    uint64_t queue_us, ttft_us;
    bool cancelled;
} hr_http_log;

/* Takes the descriptor over; closes it when there is no memory. */
void hr_http_accept(struct hr_loop *loop, int fd, const char *peer);

/* The complete request being served. */
const hr_http_parser *hr_http_request(const hr_http_conn *conn);
struct hr_loop *hr_http_loop(const hr_http_conn *conn);
hr_http_log *hr_http_log_of(hr_http_conn *conn);
void hr_http_set_route(hr_http_conn *conn, uint32_t route_idx); /* for metrics and log */
void hr_http_set_owner(hr_http_conn *conn, const hr_http_owner *owner);

/* A whole answer; ends the request. extra_fields: complete header lines with CRLF, or NULL. */
void hr_http_reply(hr_http_conn *conn, int status, const char *content_type, const char *extra_fields, const char *body,
                   size_t len);
void hr_http_reply_error(hr_http_conn *conn, const hr_api_error *error);

/* An answer in pieces (server-sent events). data is not sent before flush or end. After end the request is over;
 * close_after: also the connection. */
void hr_http_stream_begin(hr_http_conn *conn);
bool hr_http_stream_began(const hr_http_conn *conn);
void hr_http_stream_data(hr_http_conn *conn, const char *bytes, size_t len);
/* May find the client gone: the owner is told inside. Returns false then. */
bool hr_http_stream_flush(hr_http_conn *conn);
void hr_http_stream_end(hr_http_conn *conn, bool close_after);
size_t hr_http_backlog(const hr_http_conn *conn); /* unsent bytes */

/* Called by the loop. */
void hr_http_tick(hr_http_conn *conn, uint64_t now_us);
bool hr_http_close_if_idle(hr_http_conn *conn);        /* between requests: closed */
void hr_http_shutdown(hr_http_conn *conn);             /* the end: owner's shutdown, then close when sent */
void hr_http_destroy(hr_http_conn *conn);              /* at once; tells the owner */
void hr_http_free_dead(hr_http_conn *conn);            /* the memory of a destroyed one */
uint64_t hr_http_idle_since(const hr_http_conn *conn); /* 0 while busy */
hr_http_conn *hr_http_next(const hr_http_conn *conn);  /* in the loop's list */

#endif
