/* What stands behind the public handles; shared by the files of this room only.
 *
 * The room adds no policy of its own: it checks what callers give, joins ids (engine) with text (tokenizer, templates),
 * and keeps the promises of headrace.h about ownership, threads and the size of option structs.
 */
#ifndef HR_API_API_H
#define HR_API_API_H

#include "engine/engine.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

#include <pthread.h>

struct headrace_model {
    hr_model *network;
    hr_tokenizer *tokenizer;         /* NULL: the checkpoint has none */
    hr_chat_template *chat_template; /* NULL: none, or template_error says why not */
    const char *chat_template_name;  /* as in headrace_model_info; NULL when there is none */
    headrace_error template_error;   /* what chat functions answer without a template */
    char weight_dtypes[160];
};

typedef struct hr_stream_link hr_stream_link;

struct headrace_engine {
    hr_engine *engine;
    const headrace_model *model;
    headrace_engine_info info;
    pthread_mutex_t lock;   /* guards the links: which streams the engine thread may still announce (api_queue.c) */
    hr_stream_link *links;  /* all, freed at close */
    hr_stream_link *unused; /* may serve another stream */
    hr_stream_link *news;   /* announced in this step, their queues not written yet */
};

/* Copies the caller's option struct, which may be older (smaller) than ours, over defaults already in own. Both begin
 * with size_t struct_size. E_ARGUMENT for a size of 0 or one larger than ours. */
headrace_status hr_options_read(void *own, size_t own_size, const void *given, const char *what, headrace_error *err);
/* Where a model lies that a caller named: *out is path, or the embedded model's folder for "tiny". Errors: E_ARGUMENT
 * (no path), E_IO. */
headrace_status hr_model_find(const char *path, const char **out, headrace_error *err);
/* "auto", "bf16", "f32", or NULL for auto. */
headrace_status hr_kv_dtype_parse(const char *name, hr_kv_dtype *out, headrace_error *err);
/* Model functions that need weights or text. */
headrace_status hr_need_weights(const headrace_model *model, headrace_error *err);
headrace_status hr_need_tokenizer(const headrace_model *model, headrace_error *err);

/* Every range of a request. Errors: E_ARGUMENT with the field in param; E_UNSUPPORTED for stop strings without a
 * tokenizer. */
headrace_status hr_validate_request(const headrace_model *model, const headrace_request *request, headrace_error *err);

/* headrace_compute_open with a function that sees every intermediate value of each run; tap may be NULL. */
headrace_status hr_compute_open(headrace_model *model, const headrace_compute_options *options, size_t max_ids,
                                hr_tap_fn tap, void *tap_user, headrace_compute **out, headrace_error *err);

/* The door between the engine thread and a queue. A link outlives its stream: the engine may be about to announce a
 * request that was just given back, so what it holds is a link, and the link forgets the stream under the engine's
 * lock. */
struct hr_stream_link {
    headrace_engine *engine;
    headrace_stream *stream; /* NULL: unused, or not opened yet */
    headrace_queue *queue;   /* the stream's */
    bool is_news;            /* in engine->news */
    bool is_early;           /* announced before it was opened */
    hr_stream_link *next_link, *next_unused, *next_news;
    hr_stream_link *next_ready; /* in the queue's list, if is_ready; guarded by the queue's lock */
    bool is_ready;
};
hr_stream_link *hr_stream_link_acquire(headrace_engine *engine);
/* Lets the queue name the stream. Only once submit has filled it: the queue's thread may be another one, and fast. */
void hr_stream_link_open(hr_stream_link *link, headrace_stream *stream, headrace_queue *queue);
void hr_stream_link_release(hr_stream_link *link); /* after it the stream is never touched; NULL is accepted */
void hr_stream_link_notify(void *link);            /* hr_submit.notify */
void hr_stream_links_flush(void *engine);          /* hr_submit.flush */

#endif
