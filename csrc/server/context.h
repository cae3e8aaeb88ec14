/* What the parts of the server share: options, the engine, phase, counters. Constant after start but for the atomics.
 */
#ifndef HR_SERVER_CONTEXT_H
#define HR_SERVER_CONTEXT_H

#include "server/api_error.h"
#include "server/http.h"
#include "server/loop.h"
#include "server/server.h"

#include <stdatomic.h>

typedef enum hr_phase {
    HR_PHASE_SERVE = 0,
    HR_PHASE_DRAIN,    /* no new work; running requests go on */
    HR_PHASE_SHUTDOWN, /* running requests end with an error */
    HR_PHASE_STOP,     /* loops return */
} hr_phase;

/* Statuses we send, for http_requests_total; 499 stands for a client that left before an answer. */
#define HR_HTTP_STATUSES(X) X(200) X(204) X(400) X(401) X(404) X(405) X(408) X(413) X(415) X(431) X(499) X(500) X(503)
enum {
#define HR_X(status) HR_STATUS_SLOT_##status,
    HR_HTTP_STATUSES(HR_X)
#undef HR_X
        HR_N_STATUSES
};
#define HR_ROUTES_MAX 32

#define HR_SMALL_BUCKETS 16
/* A histogram of the server's own (request parameters). */
typedef struct hr_count_histogram {
    atomic_uint_fast64_t in_bucket[HR_SMALL_BUCKETS + 1]; /* not cumulative; the last is everything above */
    atomic_uint_fast64_t sum;
} hr_count_histogram;

/* A sequence that is being answered, for /slots: counts, never text. Written by the thread of its call. */
typedef struct hr_slot {
    atomic_bool is_taken;
    atomic_uint n_prompt, n_cached, n_decoded; /* tokens */
} hr_slot;

typedef struct hr_server {
    hr_server_options options;
    headrace_model *model;
    headrace_engine *engine;
    headrace_model_info model_info;
    headrace_engine_info engine_info;
    const char *model_name; /* the first served name */
    char fingerprint[64];   /* system_fingerprint */
    int64_t started_s;      /* wall time; "created" of the models list */
    int32_t bos_id;

    int listen_fds[HR_LOOP_LISTENERS_MAX];
    size_t n_listen_fds;
    char *unix_path; /* to remove at the end */
    char url[256];
    hr_slot *slots; /* [engine_info.max_num_seqs] */
    hr_loop *loops;
    size_t n_loops, n_started;

    atomic_int phase;
    atomic_uint n_connections, n_active_calls, n_busy;
    atomic_uint_fast64_t id_counter;
    uint64_t id_key;           /* random: ids of two servers differ */
    atomic_uint retry_after_s; /* from the measured drain rate */

    atomic_uint_fast64_t http_requests[HR_ROUTES_MAX + 1][HR_N_STATUSES];
    atomic_uint_fast64_t failures[HR_API_N_CODES];
    atomic_uint_fast64_t cancelled[HR_GONE_N];
    atomic_uint_fast64_t streamed_events; /* text or token chunks sent in streams */
    hr_count_histogram params_n, params_max_tokens;
} hr_server;

static inline hr_phase hr_server_phase(const hr_server *server)
{
    return (hr_phase)atomic_load_explicit(&server->phase, memory_order_acquire);
}

/* 32 hexadecimal digits, unique within this process and unlikely elsewhere. */
void hr_server_new_id(hr_server *server, char out[33]);
void hr_count_http(hr_server *server, uint32_t route_idx, int status);
void hr_observe_count(hr_count_histogram *histogram, uint64_t value);
/* A free slot, or NULL: a choice whose end we have not told yet may still hold the one of a sequence that has left the
 * batch. Given back by clearing is_taken. */
hr_slot *hr_slot_take(hr_server *server);
extern const uint64_t hr_count_bounds[HR_SMALL_BUCKETS];

#endif
