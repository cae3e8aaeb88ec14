/* One instance of the CUDA backend: what its files share. Included by csrc/backend/cuda only.
 *
 * All device memory is one block, laid out by hr_cuda_lay_out, which runs twice: first to count, then to place, so that
 * what `sizes` promises is what `open` takes. Shapes use the letters of model.h; ld() is hrk_ld. T is max_rows.
 *
 * Everything runs on one stream, in the order of the calls: an upload, the kernels of the step (a graph, or plain
 * launches), the copies of its results, an event. So a slot or page may be copied between steps without waiting.
 */
#ifndef HR_BACKEND_CUDA_CUDA_H
#define HR_BACKEND_CUDA_CUDA_H

#include "backend/cuda/cuda_backend.h"
#include "base/carver.h"
#include "hrk.h"

#include <cuda_runtime_api.h>

enum {
    HR_CUDA_ALIGNMENT = 1024, /* of every buffer: what the widest swizzle and the bulk copies ask for */
    HR_CUDA_IN_FLIGHT = 2,
    HR_CUDA_ROW_CLASSES = 18,         /* graphs for at most 1, 2, 4 .. 2^17 rows */
    HR_CUDA_STAGING_BYTES = 16 << 20, /* at most, a piece of weights on its way */
    HR_CUDA_PAGE_UPDATES = 32768,     /* changes of one upload */
    HR_CUDA_PAYLOAD_WORDS = 131072,   /* ids and biases of one upload */
};

/* A layer's weights on the device. */
typedef struct hr_cuda_layer {
    const hr_layer *source;
    const float *operator_norm, *ffn_norm;
    hrk_matrix in, out;  /* in_proj or q, k, v; out_proj */
    hrk_matrix heads[3]; /* q, k and v of a quantised `in`: its parts, one after the other */
    const float *taps, *in_bias, *conv_bias, *out_bias;
    const float *q_norm, *k_norm;
    hrk_matrix gate_up, down;
    const hrk_bf16 *router;
    const float *expert_bias;
} hr_cuda_layer;

/* How a slot was last described to the device; the device holds the same. */
typedef struct hr_cuda_slot {
    uint64_t sampling_owner; /* hr_span.sequence whose sampling parameters lie there; 0: none */
    uint64_t history_owner;
    uint32_t history_prompt, history_output; /* ids counted, those being sampled included */
    uint32_t parity;                         /* which of its two convolution states is current */
} hr_cuda_slot;

/* What a step, or a class of steps, asks for. Counts are upper bounds. */
typedef struct hr_cuda_shape {
    uint32_t max_rows, max_outputs, max_decode_items, max_chunk_items, max_prefill_tiles;
    uint32_t n_rounds; /* launches of decode attention, one for each hrk_step at the block's start */
    bool has_head;     /* there are outputs */
} hr_cuda_shape;

/* Changes found while a batch is described, before they are put into an upload block. */
typedef struct hr_cuda_changes {
    hrk_page_update *pages;        /* [HR_CUDA_PAGE_UPDATES] */
    hrk_sampling_update *sampling; /* [max_outputs]; bias_at and stop_at are words of payload */
    hrk_history_job *history;      /* [max_outputs]; ids_at likewise */
    uint32_t *payload;             /* [HR_CUDA_PAYLOAD_WORDS] */
    uint32_t n_pages, n_sampling, n_history, n_words;
} hr_cuda_changes;

/* One of the steps in flight. */
typedef struct hr_cuda_flight {
    unsigned char *upload; /* pinned, upload_bytes */
    size_t upload_used;    /* bytes of it that the step sends */
    hrk_sample *samples;   /* pinned, [max_outputs] */
    hrk_top *tops;         /* pinned, [max_outputs, HRK_TOP_MAX] */
    cudaEvent_t begun, ended;
    hr_batch *batch;
    uint64_t number;
} hr_cuda_flight;

typedef struct hr_cuda {
    hr_backend base;
    const hr_model *model;
    const hr_arch *arch;
    hr_backend_options options;
    hr_cuda_device device;
    char compute_name[96];
    uint32_t max_context, n_valid_ids;
    uint32_t n_pages, n_slots, max_pages; /* max_pages: entries of a slot's row of the page table */

    /* What runs. */
    bool is_tiled; /* sm_90a kernels on tiled weights */
    bool fuses_conv, fuses_qkv, fuses_attention;
    bool keeps_quantised; /* weights, where a tiled kernel reads their format */
    bool is_programmatic; /* launches may begin before the one before them has ended */
    uint32_t max_prefill_tiles;
    uint32_t max_chunk_items; /* decode attention goes in rounds of at most so many */
    uint32_t max_rounds;

    /* Failure: the first one; nothing is tried after it. */
    bool is_broken;
    char failure[400];

    /* Device memory: weights, pages, states, scratch, one after the other. */
    unsigned char *arena;
    size_t weight_bytes, second_head_bytes, page_bytes, slot_bytes, kv_bytes, state_bytes, scratch_bytes;
    hr_cuda_layer *layers; /* [n_layers] */
    const hrk_bf16 *embedding;
    hrk_matrix head;
    const float *final_norm;
    const float *rope; /* [max_context, D] */
    hrk_bf16 *kv;      /* [n_pages, page_bytes] */
    hrk_bf16 *state;   /* [2 n_slots, state_values] */
    size_t state_values;
    unsigned char *scratch;
    hrk_tables tables;
    size_t upload_bytes, staging_bytes;
    hrk_bf16 *x, *xn;     /* [T, ld(H)] */
    hrk_bf16 *mix;        /* [T, max(ld(H), ld(Nq D))]: what goes into the operator's output projection */
    hrk_bf16 *q;          /* [T, ld(Nq D)] */
    hrk_bf16 *wide;       /* [T, ld(3H) or ld((Nq + 2 Nkv) D)]: products of the unfused operators */
    hrk_bf16 *act;        /* [T, ld(F)] or [T K, ld(M)] */
    hrk_bf16 *expert_out; /* [T K, ld(H)] */
    hrk_routing routing;
    void *attention_scratch;
    hrk_bf16 *final; /* [max_outputs, ld(H)] */
    float *logits;   /* [max_outputs, ld(V)] */
    float *sampler_scratch;
    hrk_sample *samples;   /* [max_outputs] */
    hrk_top *tops;         /* [max_outputs, HRK_TOP_MAX] */
    hrk_bf16 *tap_rows[2]; /* [T, the widest row]; with taps only */
    size_t tap_cols;

    /* Host memory. */
    hr_batch batches[HR_CUDA_IN_FLIGHT];
    hr_cuda_flight flights[HR_CUDA_IN_FLIGHT];
    uint32_t first_flight, n_flights; /* a ring: oldest, how many */
    hr_cuda_slot *slots;              /* [n_slots] */
    int32_t *slot_token;              /* [n_slots] 0 if the device knows a token, -1 if not */
    uint32_t *page_mirror;            /* [n_slots, max_pages] */
    uint32_t *row_span;               /* [T] */
    hr_cuda_changes changes;
    unsigned char *readback; /* pinned: one row of logits; for logits, taps and the test doors */
    size_t readback_bytes;
    float *tap_values; /* [T or outputs, widest], with taps only */
    cudaStream_t stream;
    cudaGraphExec_t graphs[HR_CUDA_ROW_CLASSES][2][2]; /* by row class, has prompt rows, has outputs */
    uint64_t n_steps, last_step_us;
} hr_cuda;

/* cuda_error.c */
/* E_ENGINE naming call, step and device when code is not 0; the instance is broken from then on. call may go on with
 * "(arguments)", which are cut off. */
headrace_status hr_cuda_check(hr_cuda *cuda, int code, const char *call, headrace_error *err);
/* E_ENGINE with the first failure if there was one. */
headrace_status hr_cuda_check_whole(const hr_cuda *cuda, headrace_error *err);
#define HR_CUDA_TRY(cuda, call) HR_PASS(hr_cuda_check(cuda, (int)(call), #call, err))

/* cuda_memory.c */
headrace_status hr_cuda_plan(hr_cuda *cuda, const hr_model *model, const hr_backend_options *options,
                             headrace_error *err);
/* Sets all pointers into the device's memory, n_pages and n_slots included. */
void hr_cuda_lay_out(hr_cuda *cuda, hr_carver *c);
headrace_status hr_cuda_take_memory(hr_cuda *cuda, headrace_error *err);
void hr_cuda_give_memory(hr_cuda *cuda);

/* cuda_weights.c */
void hr_cuda_lay_out_weights(hr_cuda *cuda, hr_carver *c);
/* A piece of weights on its way to the device: some rows of the widest matrix, at most HR_CUDA_STAGING_BYTES. */
size_t hr_cuda_staging_bytes(const hr_cuda *cuda);
headrace_status hr_cuda_load_weights(hr_cuda *cuda, headrace_error *err);

/* cuda_quantised.c */
/* How a matrix of the model lies on the device, if nothing beside it wants it otherwise. */
hrk_layout hr_cuda_layout(const hr_cuda *cuda, const hr_matrix *matrix);
/* E_MODEL naming the tensor if a row of a quantised matrix has a scale that is not finite; others are not looked at. */
headrace_status hr_cuda_check_scales(const hr_model *model, const hr_matrix *from, uint32_t row, headrace_error *err);

/* cuda_upload.c: describes the batch to the device; *shape says what it needs. Enqueues the copy. */
headrace_status hr_cuda_upload(hr_cuda *cuda, hr_cuda_flight *flight, hr_cuda_shape *shape, headrace_error *err);
size_t hr_cuda_upload_bytes(const hr_cuda *cuda);

/* cuda_step.c */
hrk_step_begin_args hr_cuda_step_begin_args(const hr_cuda *cuda, uint32_t max_rows);
/* Loads every kernel that a step of this shape launches, and launches none. */
headrace_status hr_cuda_load_kernels(hr_cuda *cuda, const hr_cuda_shape *shape, headrace_error *err);
/* Enqueues all kernels of a step. Stage by stage with waits between when there are taps. */
headrace_status hr_cuda_walk(hr_cuda *cuda, const hr_cuda_shape *shape, const hr_batch *batch, headrace_error *err);

/* cuda_graph.c */
/* Captures a graph for every class of step. */
headrace_status hr_cuda_capture_graphs(hr_cuda *cuda, headrace_error *err);
void hr_cuda_destroy_graphs(hr_cuda *cuda);
/* Runs the step: a graph, or plain launches where the shape, taps or logits ask for it. */
headrace_status hr_cuda_run(hr_cuda *cuda, const hr_cuda_shape *shape, const hr_batch *batch, headrace_error *err);

/* cuda_results.c */
headrace_status hr_cuda_fetch_results(hr_cuda *cuda, hr_cuda_flight *flight, headrace_error *err);
headrace_status hr_cuda_wait_results(hr_cuda *cuda, hr_cuda_flight *flight, headrace_error *err);
/* n bytes of device memory, through pinned memory; waits. */
headrace_status hr_cuda_read(hr_cuda *cuda, const void *from, void *to, size_t n, headrace_error *err);

/* cuda_taps.c */
/* Emits rows of bf16 [n_rows, stride hrk_ld(cols)] or of fp32. Waits for the device. Nothing without a tap function. */
headrace_status hr_cuda_tap_bf16(hr_cuda *cuda, hr_tap tap, uint32_t layer, const hrk_bf16 *rows, uint32_t n_rows,
                                 uint32_t cols, uint32_t ld, headrace_error *err);
/* Likewise, of what lies by expert: each row's K rows of cols values side by side, the lowest expert first. */
headrace_status hr_cuda_tap_by_expert(hr_cuda *cuda, hr_tap tap, uint32_t layer, const hrk_bf16 *rows, uint32_t n_rows,
                                      uint32_t cols, headrace_error *err);
headrace_status hr_cuda_tap_f32(hr_cuda *cuda, hr_tap tap, uint32_t layer, const float *rows, uint32_t n_rows,
                                uint32_t cols, uint32_t ld, headrace_error *err);
headrace_status hr_cuda_tap_u32(hr_cuda *cuda, hr_tap tap, uint32_t layer, const uint32_t *rows, uint32_t n_rows,
                                uint32_t cols, headrace_error *err);

static inline bool hr_cuda_has_taps(const hr_cuda *cuda)
{
    return cuda->options.tap != NULL;
}

#endif
