/* The HTTP server: the OpenAI-compatible front of one engine.
 *
 * Life: hr_server_options_init, hr_server_open (binds the address, so that a port in use is found before a model is
 * loaded), then the caller opens model and engine, then hr_server_run (listens, prints the ready line on stdout, serves
 * until a signal), hr_server_close. Nothing is listened to before run, so a health check of a loading server is
 * refused.
 *
 * run catches SIGTERM and SIGINT: the first one drains (/ready answers 503 at once, new work is refused with 503
 * "draining", running requests finish within shutdown_timeout_ms), the second ends every stream with an error event.
 * SIGPIPE is ignored. One server a process at a time, because signals belong to the process.
 *
 * An engine that fails ends the server too: /health answers 503 at once, streams end with an error event, and after two
 * seconds, in which probes and clients can learn why, run returns E_ENGINE so that the program can end and be started
 * anew. Requests that a failure left alone (bad logits of others) have shutdown_timeout_ms to finish.
 */
#ifndef HR_SERVER_SERVER_H
#define HR_SERVER_SERVER_H

#include "headrace.h"

typedef enum hr_log_format {
    HR_LOG_TEXT = 0, /* one line a request for people */
    HR_LOG_JSON = 1, /* one JSON object a request */
} hr_log_format;

/* What the command line sets. Strings and arrays belong to the caller and must live until hr_server_close. Every 0 or
 * NULL stands for the default in brackets, which hr_server_options_init writes. */
typedef struct hr_server_options {
    const char *host;               /* name, address, or "unix:PATH" ["127.0.0.1"] */
    uint16_t port;                  /* 0: the system chooses; the ready line tells [8000] */
    const char *const *model_names; /* names that "model" may have; the first is shown [the model's own name] */
    size_t n_model_names;
    const char *const *api_keys; /* any of them opens the routes that need one (routes.c) [none: all open] */
    size_t n_api_keys;
    const char *const *allowed_origins; /* CORS: exact origins, or "*" [none] */
    size_t n_allowed_origins;

    uint64_t max_body_bytes;    /* [16 MiB] above: 413 */
    uint32_t max_header_bytes;  /* request line and fields [32 KiB] above: 431 */
    uint32_t max_header_fields; /* [100] */
    uint32_t max_target_bytes;  /* [8 KiB] */
    uint32_t max_connections;   /* over all threads [8192] */
    uint32_t max_n;             /* choices a request [16] */
    uint32_t max_logprobs;      /* [20] */
    uint32_t max_batch_prompts; /* prompts in one completions request [64] */

    uint32_t header_timeout_ms;      /* from the first byte of a request to the end of its head [10 s]; 408 */
    uint32_t body_timeout_ms;        /* without progress in a body [30 s]; 408 */
    uint32_t idle_timeout_ms;        /* a kept connection without a request [75 s]; closed */
    uint32_t keepalive_comment_ms;   /* ": keep-alive" in a stream that is silent [15 s] */
    uint32_t slow_client_timeout_ms; /* a reader that takes nothing for this long is dropped [60 s] */
    uint32_t shutdown_timeout_ms;    /* how long a drain waits [30 s] */
    uint32_t stream_merge_bytes;     /* unsent output above which tokens wait and merge [256 KiB] */
    uint32_t stream_abort_bytes;     /* unread stream output above which a further event drops the client [1 MiB] */

    uint32_t n_io_threads;      /* [half the cores, 1 .. 4] */
    bool log_requests;          /* a line a request on stderr; never prompts, answers or keys [true] */
    hr_log_format log_format;   /* [HR_LOG_TEXT] */
    const char *metrics_prefix; /* "vllm" gives the names that vLLM dashboards know ["headrace"] */
    bool metrics_need_key;      /* [false] */
    bool no_metrics;            /* /metrics is 404 [false] */
    bool no_webui;              /* GET / is 404 instead of a page [false] */
    bool request_metrics;       /* adds "metrics" (queue, first token, speed) to answers [false] */
    bool no_reasoning_parser;   /* leave <think> text in "content" [false] */
    bool no_tool_parser;        /* leave tool calls as text [false] */
} hr_server_options;

void hr_server_options_init(hr_server_options *options);

typedef struct hr_server hr_server;

/* Copies the options and binds. Errors: E_IO with the address and the system's reason (exit code 5 when the port is in
 * use: hr_server_exit_code), E_ARGUMENT (a host that does not resolve), E_MEMORY. */
headrace_status hr_server_open(const hr_server_options *options, hr_server **out, headrace_error *err);

/* Serves until a signal or the engine's failure; returns E_OK after a drain, however it ended, E_ENGINE after a
 * failure. model and engine must outlive the call; every stream of the server is destroyed when it returns. Called
 * once. Errors: E_IO (listen), E_MEMORY, E_INTERNAL (threads). */
headrace_status hr_server_run(hr_server *server, headrace_model *model, headrace_engine *engine, headrace_error *err);

/* After a failed open or run: 5 for an address in use, 1 otherwise. */
int hr_server_exit_code(const headrace_error *err);

/* NULL is accepted. A unix socket that this server made is removed. */
void hr_server_close(hr_server *server);

#endif
