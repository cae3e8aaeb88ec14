/* The seam between the engine and whatever computes: one step over one flat batch.
 *
 * A batch is T rows (tokens) in S spans. A span is consecutive tokens of one sequence: a whole prompt, a chunk of it,
 * or one decode row. Spans of many sequences stand side by side; matrix products see one [T, H] block, only convolution
 * and attention look at the spans. What a sequence has is named by indices: pages of key/value memory through a page
 * table, and one slot of convolution state. The backend decides what bytes a page or slot contains; the engine decides
 * who owns which.
 *
 * A step: the engine fills a batch, calls step_begin (which may only enqueue work), later step_wait. A backend with
 * max_steps_in_flight 2 lends two batch blocks, used in turn, and accepts a step before the one before it was waited
 * for (HR_TOKEN_FROM_SLOT lets it read a sampled id where it was made); the CPU backend computes in step_begin and
 * returns at once from step_wait. Steps take effect in the order they were begun. What a batch points to (ids, sampling
 * parameters) stays as it is until its step was waited for; pages and slots that a begun step names are given to nobody
 * else before that. A row may turn out to be one too many (the sequence had ended with the step before); its sample is
 * not looked at.
 *
 * One thread (the engine's) calls all functions of an instance.
 */
#ifndef HR_BACKEND_BACKEND_H
#define HR_BACKEND_BACKEND_H

#include "backend/sampling.h"
#include "backend/taps.h"
#include "base/status.h"
#include "model/model.h"

typedef enum hr_kv_dtype { HR_KV_AUTO, HR_KV_BF16, HR_KV_F32 } hr_kv_dtype;

typedef struct hr_backend_options {
    uint32_t n_threads;                        /* 0: one a physical core this process may use */
    uint32_t page_tokens;                      /* P */
    uint32_t max_rows, max_spans, max_outputs; /* capacities of a batch */
    uint32_t max_page_refs;                    /* entries of the flat page table */
    uint32_t n_valid_ids;                      /* ids the tokenizer has; 0: the whole vocabulary */
    uint32_t device_index;                     /* which of the machine's devices; not for the CPU */
    hr_kv_dtype kv_dtype;
    bool exact;    /* plain fp32 path; on a GPU: the reference's rounding of the rotation */
    hr_tap_fn tap; /* NULL: none */
    void *tap_user;
    /* Called while open copies weights, in bytes of the file's tensors; NULL: none. */
    void (*progress)(uint64_t done, uint64_t total, void *user);
    void *progress_user;
} hr_backend_options;

enum { HR_TOKEN_FROM_SLOT = -1 }; /* token id: the id last sampled for the span's state slot */

typedef struct hr_span {
    uint32_t first_row, n_rows;
    uint32_t start_position; /* of the first row, from 0 */
    uint32_t page_first;     /* index into hr_batch.pages: page i of this sequence is pages[page_first + i] */
    uint32_t n_pages;        /* covers start_position + n_rows positions */
    uint32_t state_slot;
    uint64_t sequence; /* unique number of the sequence, never 0: tells a backend when a slot has a new owner */
    uint32_t n_prompt; /* positions below it are of the prompt, the others were generated */
    bool is_fresh;     /* the convolution state before the first row is zero, whatever the slot holds */
    uint32_t n_warmup; /* the first n_warmup rows write no keys and values and read their own from the pages: they only
                          rebuild the convolution state after a prefix hit (docs/design/prefix-cache.md) */
} hr_span;

/* A row whose logits are wanted. */
typedef struct hr_output {
    uint32_t row;
    const hr_sampling_params *sampling; /* NULL: do not sample */
    hr_history history;                 /* for sampling */
    int32_t n_logprobs;                 /* -1: none */
    int32_t score_id;                   /* >= 0: report this id's logprob instead of sampling (prompt logprobs) */
    float *logits;                      /* NULL, or [V]: receives a copy of the raw logits */
    uint32_t sampling_slot; /* 0: the span's; else 1 + a slot that no span of the step has: where the backend may
                               describe this row's sampling. That slot's state is left alone */
} hr_output;

typedef struct hr_batch {
    uint32_t n_rows, n_spans, n_outputs, n_page_refs;
    int32_t *token_ids; /* [n_rows] */
    hr_span *spans;     /* [n_spans], rows in order, no gaps */
    uint32_t *pages;    /* [n_page_refs] */
    hr_output *outputs; /* [n_outputs], rows ascending */
    hr_sample *samples; /* [n_outputs], filled by the step, valid after step_wait */
} hr_batch;

typedef struct hr_backend_sizes {
    size_t page_bytes;    /* one page, all attention layers, keys and values */
    size_t slot_bytes;    /* one sequence's convolution state */
    size_t scratch_bytes; /* everything else the instance will hold, by these options */
} hr_backend_sizes;

/* Memory of a device, in bytes. */
typedef struct hr_device_memory {
    uint64_t free_bytes, total_bytes;
} hr_device_memory;

typedef struct hr_backend hr_backend;
typedef struct hr_backend_ops {
    const char *name;
    uint32_t max_steps_in_flight; /* steps begun and not waited for: 1 or 2 */
    /* Counts what penalties look at once a slot: of a span's rows that are sampled with penalties, each but the first
     * names a sampling_slot of its own. */
    bool wants_sampling_slots;
    /* NULL: it computes in the host's memory. Else the memory of a device, of which scratch_bytes (weights included),
     * pages and slots are taken. E_UNSUPPORTED: there is no such device, or it cannot be used, and why. */
    headrace_status (*device_memory)(uint32_t device_index, hr_device_memory *out, headrace_error *err);
    /* What an instance would need; allocates nothing. */
    headrace_status (*sizes)(const hr_model *model, const hr_backend_options *options, hr_backend_sizes *out,
                             headrace_error *err);
    /* Makes an instance with pages and slots 0 .. n-1. The model must outlive it. */
    headrace_status (*open)(const hr_model *model, const hr_backend_options *options, uint32_t n_pages,
                            uint32_t n_slots, hr_backend **out, headrace_error *err);
    void (*close)(hr_backend *backend); /* steps in flight are abandoned */
    /* A batch block with room for the options' capacities; i < max_steps_in_flight. Lent until close. */
    hr_batch *(*batch)(hr_backend *backend, uint32_t i);
    /* Runs the batch. E_ENGINE: the instance is unusable from now on. No allocation. */
    headrace_status (*step_begin)(hr_backend *backend, hr_batch *batch, headrace_error *err);
    /* Waits for the oldest step begun; its batch's samples are valid after it. E_ENGINE as above; steps still in flight
     * are then not waited for. */
    headrace_status (*step_wait)(hr_backend *backend, headrace_error *err);
    /* NULL, or the microseconds that the step last waited for took on the device, by its own clock. */
    uint64_t (*step_time_us)(const hr_backend *backend);
    /* Copies slot and page contents (forks). */
    void (*copy_slot)(hr_backend *backend, uint32_t from, uint32_t to);
    void (*copy_page)(hr_backend *backend, uint32_t from, uint32_t to);
    /* "avx512-bf16", "avx2", "plain"; and the number of threads in use. */
    const char *(*compute_name)(const hr_backend *backend);
    uint32_t (*n_threads)(const hr_backend *backend);
    /* Test doors. State of a slot as fp32 [n_conv_layers, H, L-1], oldest first; keys (which 0) or values (1) of one
     * position in one attention layer as fp32 [Nkv, D]. */
    void (*read_slot)(const hr_backend *backend, uint32_t slot, float *out);
    void (*read_kv)(const hr_backend *backend, uint32_t attention_layer, uint32_t page, uint32_t offset, int which,
                    float *out);
} hr_backend_ops;

struct hr_backend {
    const hr_backend_ops *ops; /* first member of every instance */
};

extern const hr_backend_ops hr_backend_cpu;

#endif
