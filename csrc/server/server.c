/* See server.h. The thread that calls run only waits: for signals, for the engine's failure, for the drain, for the
 * drain's deadline; and measures now and then how fast requests finish, from which Retry-After follows.
 */
#include "server/server.h"

#include "base/clock.h"
#include "base/rng.h"
#include "base/status.h"
#include "server/context.h"
#include "server/listen.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum {
    HEALTH_CHECK_MS = 200, /* between looks at the engine */
    TELL_US = 2000000,     /* a failed server still answers for so long */
};

#define DEFAULT(field, value) \
    if (!options->field)      \
    options->field = (value)

const uint64_t hr_count_bounds[HR_SMALL_BUCKETS] = {1,   2,    5,    10,   20,    50,    100,   200,
                                                    500, 1000, 2000, 5000, 10000, 20000, 50000, 100000};

/* ---------------------------------------------------------------- options */

static void fill_defaults(hr_server_options *options)
{
    DEFAULT(host, "127.0.0.1");
    DEFAULT(max_body_bytes, 16u << 20);
    DEFAULT(max_header_bytes, 32u << 10);
    DEFAULT(max_header_fields, 100);
    DEFAULT(max_target_bytes, 8u << 10);
    DEFAULT(max_connections, 8192);
    DEFAULT(max_n, 16);
    DEFAULT(max_logprobs, HEADRACE_LOGPROBS_MAX);
    DEFAULT(max_batch_prompts, 64);
    DEFAULT(header_timeout_ms, 10000);
    DEFAULT(body_timeout_ms, 30000);
    DEFAULT(idle_timeout_ms, 75000);
    DEFAULT(keepalive_comment_ms, 15000);
    DEFAULT(slow_client_timeout_ms, 60000);
    DEFAULT(shutdown_timeout_ms, 30000);
    DEFAULT(stream_merge_bytes, 256u << 10);
    DEFAULT(stream_abort_bytes, 1u << 20);
    DEFAULT(metrics_prefix, "headrace");
    if (options->n_io_threads == 0) {
        long cores = sysconf(_SC_NPROCESSORS_ONLN);

        options->n_io_threads = cores >= 8 ? 4 : cores >= 4 ? (uint32_t)cores / 2 : 1;
    }
    if (options->max_n > HEADRACE_N_MAX)
        options->max_n = HEADRACE_N_MAX;
    if (options->max_logprobs > HEADRACE_LOGPROBS_MAX)
        options->max_logprobs = HEADRACE_LOGPROBS_MAX;
}

void hr_server_options_init(hr_server_options *options)
{
    *options = (hr_server_options){.port = 8000, .log_requests = true};
    fill_defaults(options);
}

/* ---------------------------------------------------------------- small services */

void hr_server_new_id(hr_server *server, char out[33])
{
    uint64_t k = atomic_fetch_add_explicit(&server->id_counter, 1, memory_order_relaxed);

    (void)snprintf(out, 33, "%016llx%016llx", (unsigned long long)hr_rng_at(server->id_key, 2 * k),
                   (unsigned long long)hr_rng_at(server->id_key, 2 * k + 1));
}

void hr_count_http(hr_server *server, uint32_t route_idx, int status)
{
    static const int statuses[HR_N_STATUSES] = {
#define HR_X(value) value,
        HR_HTTP_STATUSES(HR_X)
#undef HR_X
    };

    for (uint32_t i = 0; i < HR_N_STATUSES; i++) {
        if (statuses[i] == status)
            (void)atomic_fetch_add_explicit(&server->http_requests[route_idx][i], 1, memory_order_relaxed);
    }
}

void hr_observe_count(hr_count_histogram *histogram, uint64_t value)
{
    uint32_t i = 0;

    while (i < HR_SMALL_BUCKETS && value > hr_count_bounds[i])
        i++;
    (void)atomic_fetch_add_explicit(&histogram->in_bucket[i], 1, memory_order_relaxed);
    (void)atomic_fetch_add_explicit(&histogram->sum, value, memory_order_relaxed);
}

hr_slot *hr_slot_take(hr_server *server)
{
    for (uint32_t i = 0; i < server->engine_info.max_num_seqs; i++) {
        hr_slot *slot = &server->slots[i];
        bool is_free = false;

        if (!atomic_load_explicit(&slot->is_taken, memory_order_relaxed) &&
            atomic_compare_exchange_strong(&slot->is_taken, &is_free, true))
            return slot;
    }
    return NULL;
}

/* ---------------------------------------------------------------- open */

headrace_status hr_server_open(const hr_server_options *options, hr_server **out, headrace_error *err)
{
    hr_server *server = calloc(1, sizeof *server);
    headrace_status status;

    *out = NULL;
    if (!server)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the server");
    server->options = *options;
    fill_defaults(&server->options);
    if (getrandom(&server->id_key, sizeof server->id_key, 0) != (ssize_t)sizeof server->id_key)
        server->id_key = hr_mix64(hr_now_us() ^ (uint64_t)getpid() << 32);
    atomic_store(&server->retry_after_s, 1);
    status = hr_listen_bind(server, err);
    if (status != HEADRACE_OK) {
        hr_server_close(server);
        return status;
    }
    *out = server;
    return HEADRACE_OK;
}

int hr_server_exit_code(const headrace_error *err)
{
    return err && err->status == HEADRACE_E_IO && strcmp(err->param, "port in use") == 0 ? 5 : 1;
}

static void free_loops(hr_server *server)
{
    for (size_t i = 0; i < server->n_loops; i++)
        hr_loop_deinit(&server->loops[i]);
    free(server->loops);
    server->loops = NULL;
    server->n_loops = 0;
}

void hr_server_close(hr_server *server)
{
    if (!server)
        return;
    hr_listen_close(server);
    free(server->slots);
    free(server);
}

/* ---------------------------------------------------------------- signals */

/* Signals belong to the process; the handler may only touch these two. */
static volatile sig_atomic_t n_signals;
static int signal_fd = -1;

static void on_signal(int number)
{
    uint64_t one = 1;
    int kept = errno;

    (void)number;
    n_signals++;
    if (write(signal_fd, &one, sizeof one) < 0) {
        /* the waiting thread looks every second anyway */
    }
    errno = kept;
}

typedef struct signal_guard {
    struct sigaction term, interrupt, pipe;
} signal_guard;

static headrace_status catch_signals(signal_guard *before, headrace_error *err)
{
    struct sigaction catching = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, ignoring = {.sa_handler = SIG_IGN};

    n_signals = 0;
    signal_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (signal_fd < 0)
        return hr_fail(err, HEADRACE_E_IO, "cannot make an event descriptor: %s", strerror(errno));
    (void)sigemptyset(&catching.sa_mask);
    (void)sigemptyset(&ignoring.sa_mask);
    (void)sigaction(SIGTERM, &catching, &before->term);
    (void)sigaction(SIGINT, &catching, &before->interrupt);
    (void)sigaction(SIGPIPE, &ignoring, &before->pipe);
    return HEADRACE_OK;
}

static void release_signals(const signal_guard *before)
{
    (void)sigaction(SIGTERM, &before->term, NULL);
    (void)sigaction(SIGINT, &before->interrupt, NULL);
    (void)sigaction(SIGPIPE, &before->pipe, NULL);
    (void)close(signal_fd);
    signal_fd = -1;
}

/* ---------------------------------------------------------------- run */

static void enter_phase(hr_server *server, hr_phase phase)
{
    atomic_store_explicit(&server->phase, (int)phase, memory_order_release);
    for (size_t i = 0; i < server->n_loops; i++)
        hr_loop_wake(&server->loops[i]);
}

static void wait_for_signal(int timeout_ms)
{
    struct pollfd watched = {.fd = signal_fd, .events = POLLIN};
    uint64_t count;

    if (poll(&watched, 1, timeout_ms) > 0 && read(signal_fd, &count, sizeof count) < 0) {
        /* taken in the meantime: n_signals says what happened */
    }
}

/* Retry-After: how long the present queue takes at the rate of the last seconds, 1 to 60. */
static void measure_rate(hr_server *server, double *rate, uint64_t *n_before, uint64_t *before_us)
{
    headrace_stats stats;
    uint64_t now_us = hr_now_us(), n;
    double seconds = (double)(now_us - *before_us) * 1e-6, wait_s;

    if (seconds < 0.5)
        return;
    headrace_engine_get_stats(server->engine, &stats);
    n = stats.finished_stop + stats.finished_length;
    *rate = 0.7 * *rate + 0.3 * (double)(n - *n_before) / seconds;
    *n_before = n;
    *before_us = now_us;
    wait_s = *rate > 0.0 ? stats.n_waiting / *rate : stats.n_waiting ? 60.0 : 1.0;
    atomic_store(&server->retry_after_s, wait_s < 1.0 ? 1u : wait_s > 60.0 ? 60u : (unsigned)(wait_s + 0.999));
}

static void end_calls(hr_server *server, uint64_t timeout_us)
{
    uint64_t deadline_us = hr_now_us() + timeout_us;

    while (n_signals < 2 && atomic_load(&server->n_active_calls) > 0 && hr_now_us() < deadline_us)
        wait_for_signal(20);
    if (atomic_load(&server->n_active_calls) > 0)
        enter_phase(server, HR_PHASE_SHUTDOWN);
    deadline_us = hr_now_us() + 500000;
    while (atomic_load(&server->n_active_calls) > 0 && hr_now_us() < deadline_us)
        wait_for_signal(10);
}

/* The engine has failed: long enough here for whoever asks to learn it, then the end. */
static headrace_status end_with_engine(hr_server *server, bool is_stuck, headrace_error *err)
{
    uint64_t until_us = hr_now_us() + TELL_US;

    enter_phase(server, HR_PHASE_DRAIN);
    (void)hr_fail(err, HEADRACE_E_ENGINE, "the engine has failed%s: the server ends, to be started anew",
                  is_stuck ? " (the device does not answer)" : "");
    end_calls(server, is_stuck ? 0 : (uint64_t)server->options.shutdown_timeout_ms * 1000);
    while (n_signals == 0 && hr_now_us() < until_us)
        wait_for_signal(100);
    return HEADRACE_E_ENGINE;
}

static headrace_status serve_until_signal(hr_server *server, headrace_error *err)
{
    double rate = 0.0;
    uint64_t n_before = 0, before_us = hr_now_us();
    headrace_stats stats;

    while (n_signals == 0) {
        wait_for_signal(HEALTH_CHECK_MS);
        measure_rate(server, &rate, &n_before, &before_us);
        headrace_engine_get_stats(server->engine, &stats);
        if (!stats.healthy)
            return end_with_engine(server, stats.is_stuck, err);
    }
    enter_phase(server, HR_PHASE_DRAIN);
    end_calls(server, (uint64_t)server->options.shutdown_timeout_ms * 1000);
    return HEADRACE_OK;
}

/* Every connection is a descriptor; the soft limit of many systems is 1024. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static void learn_facts(hr_server *server)
{
    uint64_t hash;

    headrace_model_get_info(server->model, &server->model_info);
    headrace_engine_get_info(server->engine, &server->engine_info);
    server->bos_id = server->model_info.bos_id;
    server->model_name = server->options.n_model_names ? server->options.model_names[0] : server->model_info.name;
    server->started_s = (int64_t)time(NULL);
    hash = hr_mix64(server->model_info.n_parameters) ^ hr_mix64(server->model_info.weight_bytes + 1);
    for (const char *c = server->model_info.name; *c; c++)
        hash = hr_mix64(hash ^ (unsigned char)*c);
    (void)snprintf(server->fingerprint, sizeof server->fingerprint, "hr-%s-%08llx", headrace_version(),
                   (unsigned long long)(hash & 0xFFFFFFFFu));
}

static void print_ready(const hr_server *server)
{
    const headrace_engine_info *engine = &server->engine_info;
    double bytes = (double)engine->kv_bytes;
    const char *unit = bytes >= 0x1p30 ? "GiB" : "MiB";

    (void)printf("headrace: ready on %s (model %s, %u seqs, %.1f %s KV)\n", server->url, server->model_name,
                 engine->max_num_seqs, bytes / (bytes >= 0x1p30 ? 0x1p30 : 0x1p20), unit);
    (void)fflush(stdout);
}

static headrace_status start_loops(hr_server *server, headrace_error *err)
{
    server->loops = calloc(server->options.n_io_threads, sizeof *server->loops);
    if (!server->loops)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the I/O threads");
    while (server->n_loops < server->options.n_io_threads)
        HR_PASS(hr_loop_init(&server->loops[server->n_loops++], server, err));
    for (size_t i = 0; i < server->n_loops; i++)
        HR_PASS(hr_loop_start(&server->loops[i], err));
    return HEADRACE_OK;
}

headrace_status hr_server_run(hr_server *server, headrace_model *model, headrace_engine *engine, headrace_error *err)
{
    signal_guard before;
    headrace_status status;

    server->model = model;
    server->engine = engine;
    learn_facts(server);
    server->slots = calloc(server->engine_info.max_num_seqs, sizeof *server->slots);
    if (!server->slots)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the slots");
    raise_descriptor_limit();
    HR_PASS(catch_signals(&before, err));
    status = hr_listen_start(server, err);
    if (status == HEADRACE_OK)
        status = start_loops(server, err);
    if (status == HEADRACE_OK) {
        print_ready(server);
        status = serve_until_signal(server, err);
    }
    enter_phase(server, HR_PHASE_STOP);
    free_loops(server);
    release_signals(&before);
    return status;
}
