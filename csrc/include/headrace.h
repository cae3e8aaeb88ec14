/* headrace: serve Liquid AI's LFM2 models from C.
 *
 * This is the only installed header and the only one that programs (the command line, the server, the Python extension)
 * include. Handles are opaque; every option struct begins with struct_size and is filled by its *_init function, so
 * that fields can be added without breaking a caller. Functions return a status; the text of what went wrong, and
 * where, is in the caller's headrace_error. The library never prints, exits, aborts on input or installs signal
 * handlers.
 *
 * Threads: a model is immutable after open and may be used from any thread. An engine may be used from any thread. One
 * stream belongs to one thread at a time (headrace_stream_cancel excepted: any thread, any time before destroy).
 * Strings are UTF-8; lengths are in bytes. Token ids are int32_t. Times are microseconds. Sizes are bytes.
 */
#ifndef HEADRACE_H
#define HEADRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HEADRACE_API __attribute__((visibility("default")))

/* ---------------------------------------------------------------- status and errors */

/* One list, so that codes and their names cannot drift apart. */
#define HEADRACE_STATUS_LIST(X)                                                                           \
    X(OK, 0, "ok")                                                                                        \
    X(E_ARGUMENT, -1, "invalid argument") /* the caller's value is out of range; error.param names it */  \
    X(E_IO, -2, "input/output error")     /* a file could not be opened, read or written */               \
    X(E_MODEL, -3, "model refused")       /* a model file is damaged, hostile, inconsistent or foreign */ \
    X(E_UNSUPPORTED, -4, "unsupported")   /* understood, but this build or model cannot do it */          \
    X(E_MEMORY, -5, "out of memory")                                                                      \
    X(E_CONTEXT, -6, "context length exceeded") /* prompt + max_tokens do not fit max_model_len */        \
    X(E_QUEUE_FULL, -7, "queue full")           /* admission limits reached; try again later */           \
    X(E_CLOSED, -8, "closed")                   /* the engine is draining or closed */                    \
    X(E_CANCELLED, -9, "cancelled")                                                                       \
    X(E_TIMEOUT, -10, "timeout")              /* nothing within the given time; nothing was lost */       \
    X(E_TEMPLATE, -11, "chat template error") /* unknown construct, or the template itself raised */      \
    X(E_ENGINE, -12, "engine failure")        /* the backend failed (NaN logits, device fault) */         \
    X(E_INTERNAL, -13, "internal error")

typedef enum headrace_status {
#define HEADRACE_X(name, value, text) HEADRACE_##name = (value),
    HEADRACE_STATUS_LIST(HEADRACE_X)
#undef HEADRACE_X
} headrace_status;

/* What went wrong. Belongs to the caller; any function accepts NULL for it. Untouched on success. */
typedef struct headrace_error {
    headrace_status status;
    char param[64];     /* the request field at fault ("temperature", "stop[2]"), or "" */
    char message[1024]; /* always terminated */
} headrace_error;

/* Name of a status code ("context length exceeded"); never NULL. */
HEADRACE_API const char *headrace_status_text(headrace_status status);
/* "MAJOR.MINOR.PATCH". */
HEADRACE_API const char *headrace_version(void);
/* One line: compiler, optional parts built in, the CPU instruction sets that this machine granted. */
HEADRACE_API const char *headrace_build_info(void);
/* Frees what the library handed out by pointer (ids, text, JSON). NULL is accepted. */
HEADRACE_API void headrace_free(void *memory);

typedef enum headrace_log_level {
    HEADRACE_LOG_ERROR = 0,
    HEADRACE_LOG_WARNING = 1,
    HEADRACE_LOG_INFO = 2,
    HEADRACE_LOG_DEBUG = 3,
} headrace_log_level;

/* Sends the library's log lines (no newline) to fn; NULL discards them, which is the default. Process-wide; call it
 * before opening anything. fn is called from any thread. */
HEADRACE_API void headrace_set_log(void (*fn)(headrace_log_level level, const char *line, void *user), void *user);

/* ---------------------------------------------------------------- model: weights, tokenizer, chat template */

typedef struct headrace_model headrace_model;

typedef struct headrace_model_options {
    size_t struct_size;
    const char *path; /* a Hugging Face folder, a .gguf file (first shard of a split one), or "tiny" for the embedded
                         model (if it is found beside the program, see headrace_embedded_model_path) */
    const char *chat_template; /* NULL: the checkpoint's own. Else a built-in name (headrace_chat_template_names) or the
                                  path of a Jinja file */
    bool skip_weights;         /* open only configuration and tokenizer (tokenize, chat rendering) */
    bool ignore_generation_config; /* take sampling defaults from the model card table, not from the checkpoint */
    bool
        dummy_weights; /* random weights of the configured sizes, made on the device: for measuring speed (CUDA only) */
    /* Called while loading with bytes done and total; NULL for none. Called from the opening thread. */
    void (*progress)(uint64_t done, uint64_t total, void *user);
    void *progress_user;
} headrace_model_options;

HEADRACE_API void headrace_model_options_init(headrace_model_options *options);

/* Opens a checkpoint. On success *out belongs to the caller until headrace_model_close; on failure it is NULL.
 * Errors: E_IO, E_MODEL (names file, tensor or field, byte offset), E_UNSUPPORTED, E_MEMORY. */
HEADRACE_API headrace_status headrace_model_open(const headrace_model_options *options, headrace_model **out,
                                                 headrace_error *err);
/* All engines on the model must be closed before. NULL is accepted. */
HEADRACE_API void headrace_model_close(headrace_model *model);

/* Where the embedded model lies (HEADRACE_TINY_MODEL, then the installed place, then the source tree), or NULL. */
HEADRACE_API const char *headrace_embedded_model_path(void);

/* Plain facts; strings live as long as the model. */
typedef struct headrace_model_info {
    const char *name;          /* folder or file name without extension, or general.name */
    const char *architecture;  /* "lfm2" or "lfm2moe" */
    const char *format;        /* "safetensors" or "gguf" */
    const char *weight_dtypes; /* "BF16", or "Q4_K 62%, Q6_K 37%, F32 1%" by bytes */
    uint64_t n_parameters;
    uint64_t n_parameters_active; /* per token; equals n_parameters for dense models */
    uint64_t weight_bytes;        /* mapped */
    uint32_t n_layers, n_attention_layers, n_conv_layers;
    uint32_t hidden_size, vocab_size, n_heads, n_kv_heads, head_dim, conv_length;
    uint32_t n_experts, n_experts_used; /* 0 for dense models */
    uint32_t max_positions;             /* from the config */
    int32_t bos_id;                     /* -1 when absent */
    uint32_t n_eos_ids;
    int32_t eos_ids[8];
    uint32_t tokenizer_size;        /* ids below this have text; <= vocab_size; 0: no tokenizer in the file */
    const char *chat_template_name; /* "checkpoint", a built-in name, a file, or NULL when there is none */
    const char *sampling_source;    /* "generation_config.json", "gguf", "model card: LFM2", ... */
} headrace_model_info;

HEADRACE_API void headrace_model_get_info(const headrace_model *model, headrace_model_info *out);
/* Every tensor and metadata entry as one JSON object, for `headrace info --json`. *json is freed with headrace_free. */
HEADRACE_API headrace_status headrace_model_describe(const headrace_model *model, char **json, headrace_error *err);

/* ---------------------------------------------------------------- text */

enum {
    HEADRACE_ENCODE_SPECIAL = 1, /* text equal to a special token becomes that token (templates); off for user text */
    HEADRACE_ENCODE_BOS = 2,     /* put the beginning-of-sequence id in front (completions) */
};
enum {
    HEADRACE_DECODE_SKIP_SPECIAL = 1, /* special tokens contribute nothing instead of their text */
};

/* text need not be valid UTF-8: invalid sequences are read as U+FFFD. *ids [n_ids] is freed with headrace_free. */
HEADRACE_API headrace_status headrace_encode(const headrace_model *model, const char *text, size_t text_len,
                                             uint32_t flags, int32_t **ids, size_t *n_ids, headrace_error *err);
/* *text is terminated as well and may hold invalid UTF-8 replaced by U+FFFD. Ids outside the vocabulary: E_ARGUMENT. */
HEADRACE_API headrace_status headrace_decode(const headrace_model *model, const int32_t *ids, size_t n_ids,
                                             uint32_t flags, char **text, size_t *text_len, headrace_error *err);
/* The exact bytes of one token, not terminated (they may be part of a character); *bytes lives as long as the model.
 * Returns false for ids without text. *is_special may be NULL. */
HEADRACE_API bool headrace_token_bytes(const headrace_model *model, int32_t id, const char **bytes, size_t *len,
                                       bool *is_special);

/* Comma-separated names of the built-in chat templates ("lfm2, lfm2.5-instruct, ..."). */
HEADRACE_API const char *headrace_chat_template_names(void);

enum {
    HEADRACE_CHAT_PARSE_SPECIAL =
        1, /* reference behaviour: special-token text inside messages becomes special tokens */
};
/* Renders a conversation. json is the body of a chat completion request, of which "messages", "tools",
 * "add_generation_prompt" (default true), "continue_final_message" and "chat_template_kwargs" are read and all else is
 * ignored. Either output may be NULL. *text and *ids are freed with headrace_free.
 * Errors: E_ARGUMENT (param names the field, "messages[1].content"), E_TEMPLATE. */
HEADRACE_API headrace_status headrace_chat_render(const headrace_model *model, const char *json, size_t json_len,
                                                  uint32_t flags, char **text, size_t *text_len, int32_t **ids,
                                                  size_t *n_ids, headrace_error *err);

/* What a chat model says, parted as the OpenAI wire format wants it. Text goes in as it comes from the stream (with
 * sampling.keep_special set when tool calls are looked for, because their markers are special tokens); parts come out.
 * Tags that span tokens are held back while they may become one. One thread at a time. */
typedef struct headrace_chat_parser headrace_chat_parser;

enum {
    HEADRACE_OUTPUT_REASONING = 1,    /* <think> ... </think> at the beginning is reasoning */
    HEADRACE_OUTPUT_TOOLS = 2,        /* tool call blocks become calls; without it they stay content */
    HEADRACE_OUTPUT_IN_REASONING = 4, /* the rendered prompt ended with an open <think> */
};

typedef struct headrace_tool_call {
    const char *id; /* "call_" + 24 characters */
    const char *name;
    const char *arguments; /* JSON text of an object */
} headrace_tool_call;

/* What came free since the last take. Pointers are valid until the next call on the parser. */
typedef struct headrace_chat_delta {
    const char *content, *reasoning; /* terminated, whole characters; may be empty, never NULL */
    size_t content_len, reasoning_len;
    const headrace_tool_call *calls; /* [n_calls], complete ones; NULL if none */
    uint32_t n_calls;
    uint32_t first_call; /* how many were taken before */
} headrace_chat_delta;

/* id_seed: where the calls' ids come from. Errors: E_MEMORY. */
HEADRACE_API headrace_status headrace_chat_parser_create(uint32_t flags, uint64_t id_seed, headrace_chat_parser **out,
                                                         headrace_error *err);
HEADRACE_API void headrace_chat_parser_add(headrace_chat_parser *parser, const char *text, size_t len);
/* The end of the text: nothing is held back any more; a call block that does not parse becomes content. */
HEADRACE_API void headrace_chat_parser_finish(headrace_chat_parser *parser);
/* Errors: E_MEMORY (something was lost on the way). */
HEADRACE_API headrace_status headrace_chat_parser_take(headrace_chat_parser *parser, headrace_chat_delta *out,
                                                       headrace_error *err);
HEADRACE_API void headrace_chat_parser_destroy(headrace_chat_parser *parser); /* NULL is accepted */

/* ---------------------------------------------------------------- engine */

typedef struct headrace_engine headrace_engine;

typedef struct headrace_engine_options {
    size_t struct_size;
    const char *device;              /* "auto", "cpu", "cuda" or "cuda:N"; auto: a GPU if there is one to use */
    uint32_t n_threads;              /* 0: one a physical core that this process may use */
    uint32_t max_model_len;          /* 0: from the checkpoint, lowered to what the KV memory holds */
    uint32_t max_num_seqs;           /* 0: by memory, at most 256, on a GPU 1024 */
    uint32_t max_num_batched_tokens; /* rows a step, 0: 512 on the CPU, on a GPU 2048 or 3072 */
    uint32_t max_num_queued_reqs;    /* 0: 4 x max_num_seqs */
    uint64_t max_num_queued_tokens;  /* 0: no limit */
    uint64_t kv_cache_bytes;         /* 0: by free memory */
    uint32_t page_tokens;            /* 0: 16, on a GPU 64 */
    const char *kv_cache_dtype;      /* "auto", "bf16" or "f32" */
    bool disable_prefix_caching;
    bool exact;                    /* the plain fp32 path: slow, the oracle of every other path */
    uint64_t queue_timeout_us;     /* 0: 60 s; a request that waited longer ends with E_QUEUE_FULL */
    uint64_t seed;                 /* for requests that bring none: request k uses a number derived from (seed, k) */
    double gpu_memory_utilization; /* (0, 1]: the part of a GPU's memory that may be used; 0: 0.9 */
    /* Speculative decoding: several next tokens are guessed and checked in one step. The answers are the same, token
     * for token. */
    uint32_t num_speculative_tokens; /* guesses a step, at most HEADRACE_SPECULATIVE_MAX; 0: no speculation */
    uint32_t prompt_lookup_max;      /* longest n-gram that is looked for in what was said before; 0: 4 */
    uint32_t prompt_lookup_min;      /* shortest; 0: 2, or prompt_lookup_max if that is less */
    headrace_model *draft_model; /* NULL: guesses by prompt lookup. Else by this model, which must outlive the engine
                                    and have the model's vocabulary */
} headrace_engine_options;

#define HEADRACE_SPECULATIVE_MAX 16 /* guesses a step */

HEADRACE_API void headrace_engine_options_init(headrace_engine_options *options);

/* Reserves all memory and starts the engine's threads. The model must outlive the engine. Errors: E_ARGUMENT, E_MEMORY
 * (says what fits and which option helps), E_UNSUPPORTED. */
HEADRACE_API headrace_status headrace_engine_open(headrace_model *model, const headrace_engine_options *options,
                                                  headrace_engine **out, headrace_error *err);
/* Ends every request with E_CLOSED, joins the threads, frees everything. Streams must be destroyed before. NULL
 * accepted. */
HEADRACE_API void headrace_engine_close(headrace_engine *engine);
/* Refuses new requests from now on (E_CLOSED) and waits until none is left, or E_TIMEOUT. */
HEADRACE_API headrace_status headrace_engine_drain(headrace_engine *engine, uint64_t timeout_us);

/* What open decided; constant. */
typedef struct headrace_engine_info {
    const char *device;  /* "cpu" or "cuda" */
    const char *compute; /* "avx512-bf16", "avx2", "plain"; or the GPU and the kernels in use */
    uint32_t n_threads, max_model_len, max_num_seqs, max_num_batched_tokens, max_num_queued_reqs, page_tokens;
    uint32_t n_pages;
    uint64_t kv_bytes, state_bytes, scratch_bytes;
    const char *kv_cache_dtype;
    bool prefix_caching;
    const char *speculation; /* "ngram" or "draft_model"; NULL: none */
    uint32_t num_speculative_tokens;
    uint64_t draft_bytes; /* memory of the draft model's pages, states and work space, beside the numbers above */
} headrace_engine_info;
HEADRACE_API void headrace_engine_get_info(const headrace_engine *engine, headrace_engine_info *out);

#define HEADRACE_HISTOGRAM_BUCKETS 26
typedef struct headrace_histogram {
    uint64_t count;
    double sum;
    uint32_t n_buckets;                              /* finite upper bounds; the +Inf bucket is count */
    double bound[HEADRACE_HISTOGRAM_BUCKETS];        /* ascending */
    uint64_t cumulative[HEADRACE_HISTOGRAM_BUCKETS]; /* observations <= bound[i] */
} headrace_histogram;

/* A consistent-enough snapshot: each number is read atomically, not all at one instant. Counters only rise. */
typedef struct headrace_stats {
    bool healthy;                  /* false after an engine failure */
    bool is_stuck;                 /* a call to a device has not returned for 30 s: its requests never end */
    uint32_t n_running, n_waiting; /* sequences now */
    uint32_t n_pages_used, n_pages, n_slots_used, n_slots;
    uint32_t n_pages_cached; /* unused, but holding a reusable prefix */
    uint64_t prompt_tokens, generation_tokens, prompt_tokens_cached;
    uint64_t prefix_queries, prefix_hits; /* in tokens */
    uint64_t preemptions, steps;
    uint64_t finished_stop, finished_length, finished_error, finished_cancelled;
    uint64_t rejected_queue_full, rejected_context, rejected_queue_timeout;
    uint64_t nan_logits;
    headrace_histogram ttft_s, itl_s, e2e_s, queue_s, prefill_s, decode_s, inference_s;
    headrace_histogram prompt_len, generation_len, step_tokens;
    headrace_histogram step_decode_s, step_prefill_s; /* a step; prefill: it had prompt rows. By the device's clock if
                                                         it has one */
    headrace_histogram delivery_lag_s;                /* from a step's results to the last reader told */
    uint64_t spec_drafts;                             /* rounds of guesses, a sequence and step each */
    uint64_t spec_draft_tokens, spec_accepted_tokens; /* guesses, and those that were right */
    uint64_t spec_accepted_at[HEADRACE_SPECULATIVE_MAX]; /* right ones by position in their round */
} headrace_stats;
HEADRACE_API void headrace_engine_get_stats(const headrace_engine *engine, headrace_stats *out);

/* ---------------------------------------------------------------- requests and streams */

#define HEADRACE_STOP_MAX 16        /* stop strings, and stop ids, a request */
#define HEADRACE_STOP_BYTES_MAX 256 /* a stop string */
#define HEADRACE_BIAS_MAX 1024      /* logit_bias entries */
#define HEADRACE_LOGPROBS_MAX 20    /* alternatives a token */
#define HEADRACE_N_MAX 128          /* choices a request */

typedef struct headrace_bias {
    int32_t id;
    float value; /* added to the logit, -100 .. 100 */
} headrace_bias;

/* How tokens are chosen. Order of operations, each on the output of the one before (as transformers applies them):
 * logit_bias, repetition penalty (prompt and output), presence and frequency penalties (output only), min_tokens (stop
 * ids become impossible), temperature, top_k, top_p, min_p, draw. */
typedef struct headrace_sampling {
    size_t struct_size;
    float temperature;        /* 0: greedy (ties: lowest id); else (0, 2] */
    int32_t top_k;            /* 0 or -1: off */
    float top_p;              /* (0, 1]; 1: off */
    float min_p;              /* [0, 1]; 0: off */
    float repetition_penalty; /* (0, 10]; 1: off */
    float presence_penalty;   /* [-2, 2]; 0: off */
    float frequency_penalty;  /* [-2, 2]; 0: off */
    bool has_seed;
    uint64_t seed;             /* same request, same seed: same tokens, whatever shares the batch */
    int32_t n_logprobs;        /* -1: none; 0 .. 20 alternatives beside the chosen token; of the raw logits */
    int32_t n_prompt_logprobs; /* the same for every prompt token but the first */
    uint32_t max_tokens;       /* 0: the rest of the context */
    uint32_t min_tokens;       /* no stop id or stop string ends the answer before this many tokens */
    bool ignore_eos;
    uint32_t n_stop_ids;
    int32_t stop_ids[HEADRACE_STOP_MAX]; /* beside the model's own */
    uint32_t n_stop;
    const char *stop[HEADRACE_STOP_MAX]; /* terminated, not empty; copied by submit */
    bool include_stop;                   /* keep the stop string (or stop id's text) in the output */
    bool keep_special;                   /* special tokens show as their text; default: they are dropped */
    uint32_t n_bias;
    const headrace_bias *bias; /* copied by submit */
} headrace_sampling;

/* Neutral values (temperature 1, everything else off, max_tokens 0, n_logprobs -1). */
HEADRACE_API void headrace_sampling_init(headrace_sampling *sampling);
/* headrace_sampling_init, then the model's recommended values (see info.sampling_source). */
HEADRACE_API void headrace_sampling_defaults(const headrace_model *model, headrace_sampling *sampling);

typedef struct headrace_stream headrace_stream;
typedef struct headrace_queue headrace_queue;

typedef struct headrace_request {
    size_t struct_size;
    const int32_t *prompt_ids; /* copied by submit */
    size_t n_prompt_ids;       /* >= 1 */
    headrace_sampling sampling;
    uint32_t n;                     /* choices, 0 means 1; choice i draws with seed + i */
    int32_t priority;               /* lower runs first; 0 */
    headrace_queue *queue;          /* NULL, or where the stream announces itself when it has events */
    void *user;                     /* returned by headrace_stream_user */
    uint64_t cache_salt;            /* requests share cached prefixes only with an equal salt; 0 */
    int32_t num_speculative_tokens; /* guesses a step, if the engine speculates: -1: as many as the engine's options
                                       say; 0: none; else at most so many */
} headrace_request;

HEADRACE_API void headrace_request_init(headrace_request *request);

/* Hands a request in; never blocks for long. *out belongs to the caller until headrace_stream_destroy.
 * Errors: E_ARGUMENT (error.param names the field), E_CONTEXT, E_QUEUE_FULL, E_CLOSED, E_MEMORY, E_ENGINE. */
HEADRACE_API headrace_status headrace_submit(headrace_engine *engine, const headrace_request *request,
                                             headrace_stream **out, headrace_error *err);

typedef enum headrace_finish {
    HEADRACE_FINISH_NONE = 0,   /* goes on */
    HEADRACE_FINISH_STOP = 1,   /* a stop id or stop string, or end of sequence */
    HEADRACE_FINISH_LENGTH = 2, /* max_tokens, or the context is full */
    HEADRACE_FINISH_ABORT = 3,  /* cancelled */
    HEADRACE_FINISH_ERROR = 4,  /* event.error says why */
} headrace_finish;

typedef struct headrace_token_logprobs {
    int32_t id;
    float logprob; /* natural log, of the raw softmax */
    uint32_t rank; /* 1: the most likely token */
    uint32_t n_top;
    int32_t top_ids[HEADRACE_LOGPROBS_MAX]; /* by falling logprob */
    float top_logprobs[HEADRACE_LOGPROBS_MAX];
} headrace_token_logprobs;

/* News of one choice. Pointers are valid until the next headrace_stream_next or destroy on this stream. */
typedef struct headrace_event {
    uint32_t index;   /* choice, 0 .. n-1 */
    const char *text; /* whole characters only; held back while it may become a stop string; may be empty */
    size_t text_len;
    const int32_t *ids; /* every token since the last event of this choice (a stop id included) */
    size_t n_ids;
    const headrace_token_logprobs *logprobs;        /* [n_ids], NULL unless asked */
    const headrace_token_logprobs *prompt_logprobs; /* [n_prompt_logprobs], first event of choice 0 only, if asked;
                                                       entry i is prompt token i + 1 */
    size_t n_prompt_logprobs;
    headrace_finish finish;
    int32_t stop_id;                            /* with FINISH_STOP: the id that stopped, or -1 */
    int32_t stop_string;                        /* with FINISH_STOP: index into sampling.stop, or -1 */
    headrace_error error;                       /* with FINISH_ERROR */
    bool is_last;                               /* no further event of any choice follows */
    uint32_t n_prompt_tokens, n_cached_tokens;  /* of the request */
    uint32_t n_completion_tokens;               /* of this choice so far */
    uint64_t queue_us, ttft_us, total_us;       /* since submit; ttft 0 before the first token */
    uint64_t n_draft_tokens, n_accepted_tokens; /* guesses for the request so far, and those that were right */
} headrace_event;

/* Takes the next event, merging all pending tokens of a choice. timeout_us 0: do not wait. E_TIMEOUT when nothing came;
 * E_CLOSED after the last event was taken. */
HEADRACE_API headrace_status headrace_stream_next(headrace_stream *stream, uint64_t timeout_us, headrace_event *event);
/* Ends the request within one step; its events end with FINISH_ABORT. Idempotent, any thread. */
HEADRACE_API void headrace_stream_cancel(headrace_stream *stream);
/* Cancels if still running. After it no pointer of the stream's is valid. NULL is accepted. */
HEADRACE_API void headrace_stream_destroy(headrace_stream *stream);
HEADRACE_API void *headrace_stream_user(const headrace_stream *stream);

/* Many streams, one waiter: an event loop watches the descriptor and asks which streams have events. One thread per
 * queue. */
HEADRACE_API headrace_status headrace_queue_create(headrace_queue **out, headrace_error *err);
HEADRACE_API void headrace_queue_destroy(headrace_queue *queue); /* its streams must be destroyed before */
/* An eventfd, readable when a stream has news; headrace_queue_take clears it. Written at most once an engine step. */
HEADRACE_API int headrace_queue_fd(const headrace_queue *queue);
/* Fills up to max streams that have events and returns how many. Take all events of each (headrace_stream_next with
 * timeout 0 until it returns something else than HEADRACE_OK): it is named again only when new ones come. */
HEADRACE_API size_t headrace_queue_take(headrace_queue *queue, headrace_stream **streams, size_t max);

/* ---------------------------------------------------------------- conversion */

typedef struct headrace_convert_options {
    size_t struct_size;
    const char *path;      /* the model, as in headrace_model_options */
    const char *out;       /* the GGUF file to write. NULL: NAME-TYPE.gguf in the model's folder (beside its file; for
                              "tiny" in the working folder) */
    const char *type;      /* one of headrace_convert_types, upper or lower case; q4_k and q5_k are the _m mixes */
    const char *imatrix;   /* importance matrix to weigh the rounding errors with, or NULL */
    uint32_t n_threads;    /* 0: one a processor; the file is the same for any number */
    bool replace;          /* an existing file may be replaced */
    bool allow_requantize; /* the model may be quantised already */
    /* Called from the calling thread, some times a second, with bytes written and in all; returns false to stop
     * (E_CANCELLED). NULL for none. */
    bool (*progress)(uint64_t done, uint64_t total, void *user);
    void *progress_user;
} headrace_convert_options;
HEADRACE_API void headrace_convert_options_init(headrace_convert_options *options);

typedef struct headrace_convert_info {
    char *path;       /* the file written; freed with headrace_free */
    const char *type; /* "Q4_K_M"; constant */
    uint64_t n_bytes, n_parameters;
    uint32_t n_tensors;
} headrace_convert_info;

/* Comma-separated names of the types ("f32, f16, ..."). */
HEADRACE_API const char *headrace_convert_types(void);
/* Writes a model as a GGUF file, with memory bounded by the threads (a few MiB each). The file comes to be under its
 * name when it is complete and on disk; on failure nothing is left. Errors: E_ARGUMENT (type; out is the model's own
 * file), E_IO (out exists, does not fit on the disk, cannot be written), E_MODEL (as headrace_model_open; a weight that
 * is not finite or does not fit the type, by tensor, row and column), E_UNSUPPORTED (quantised already; a model that
 * GGUF cannot describe), E_MEMORY, E_CANCELLED. */
HEADRACE_API headrace_status headrace_convert(const headrace_convert_options *options, headrace_convert_info *out,
                                              headrace_error *err);

/* ---------------------------------------------------------------- research */

typedef struct headrace_compute_options {
    size_t struct_size;
    bool exact;                 /* plain fp32 path */
    uint32_t n_threads;         /* 0: as in the engine options */
    uint32_t chunk;             /* rows a step; 0: all that fit 512 */
    const char *kv_cache_dtype; /* NULL: "auto" */
    const char *device;         /* as in the engine options; NULL: "cpu" */
} headrace_compute_options;
HEADRACE_API void headrace_compute_options_init(headrace_compute_options *options);

/* Logits of every position. logits: caller's [n_ids, vocab_size] float32. Independent of any engine.
 * Errors: E_ARGUMENT (an id outside the vocabulary), E_MEMORY, E_ENGINE. */
HEADRACE_API headrace_status headrace_compute_logits(headrace_model *model, const headrace_compute_options *options,
                                                     const int32_t *ids, size_t n_ids, float *logits,
                                                     headrace_error *err);

/* The same for many lists of ids, with the weights made ready once. One thread at a time; closed before the model. */
typedef struct headrace_compute headrace_compute;
/* max_ids: the longest list that will be run, at most max_positions. *out belongs to the caller until
 * headrace_compute_close. Errors: E_ARGUMENT, E_CONTEXT, E_UNSUPPORTED, E_MEMORY. */
HEADRACE_API headrace_status headrace_compute_open(headrace_model *model, const headrace_compute_options *options,
                                                   size_t max_ids, headrace_compute **out, headrace_error *err);
/* Each call is a sequence of its own. logits: caller's [n_ids, vocab_size] float32. Errors: E_ARGUMENT (an id outside
 * the vocabulary), E_CONTEXT (more than max_ids), E_ENGINE (only close may follow). */
HEADRACE_API headrace_status headrace_compute_run(headrace_compute *compute, const int32_t *ids, size_t n_ids,
                                                  float *logits, headrace_error *err);
HEADRACE_API void headrace_compute_close(headrace_compute *compute); /* NULL is accepted */

/* Importance of the columns of every weight matrix: how strongly a calibration text drives them. A quantiser that knows
 * it rounds better (headrace convert --imatrix). Use and life as of headrace_compute; taps slow the run down. */
typedef struct headrace_importance headrace_importance;
HEADRACE_API headrace_status headrace_importance_open(headrace_model *model, const headrace_compute_options *options,
                                                      size_t max_ids, headrace_importance **out, headrace_error *err);
/* Runs one sequence and adds what went into each matrix. Errors: as headrace_compute_run; E_UNSUPPORTED (the device
 * does not show some input), E_MEMORY. */
HEADRACE_API headrace_status headrace_importance_add(headrace_importance *importance, const int32_t *ids, size_t n_ids,
                                                     headrace_error *err);
typedef struct headrace_importance_info {
    uint64_t n_rows; /* tokens run */
    uint32_t n_sequences;
    uint32_t n_experts, n_unseen_experts; /* of all layers; 0 for dense models */
    uint64_t least_expert_rows;           /* rows that the rarest expert saw */
} headrace_importance_info;
HEADRACE_API void headrace_importance_get_info(const headrace_importance *importance, headrace_importance_info *out);
/* Writes an imatrix file, as llama.cpp has it; dataset is the text's name for the record, or NULL. Complete or not
 * there at all. Errors: E_ARGUMENT (nothing was run; a sum that is not finite), E_IO, E_MEMORY. */
HEADRACE_API headrace_status headrace_importance_save(const headrace_importance *importance, const char *path,
                                                      const char *dataset, headrace_error *err);
HEADRACE_API void headrace_importance_close(headrace_importance *importance); /* NULL is accepted */

/* A float32 tensor for headrace_save_tensors; data is [shape[0], .., shape[rank - 1]], row-major, borrowed. */
typedef struct headrace_named_tensor {
    const char *name;
    const float *data;
    uint32_t rank; /* 1 .. 4 */
    uint64_t shape[4];
} headrace_named_tensor;

/* Writes a safetensors file: beside the path first and renamed at the end, so that nobody reads half of one. */
HEADRACE_API headrace_status headrace_save_tensors(const char *path, const headrace_named_tensor *tensors,
                                                   size_t n_tensors, headrace_error *err);

/* Runs ids through two paths (plain fp32 against the fast one, a GPU against the CPU, or two chunkings) and reports
 * every named intermediate value in order, with the first place whose error exceeds the tolerance, as JSON. *json is
 * freed with headrace_free.
 */
HEADRACE_API headrace_status headrace_compare(headrace_model *model, const headrace_compute_options *left,
                                              const headrace_compute_options *right, const int32_t *ids, size_t n_ids,
                                              double tolerance, char **json, headrace_error *err);

#ifdef __cplusplus
}
#endif
#endif
