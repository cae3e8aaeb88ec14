/* Which tensors a GGUF file of a model has, and which type each of them gets.
 *
 * The mixes are llama.cpp's, tensor by tensor, so that a file made here is the file that its users know under that name
 * (docs/formats.md lists the rules). Norms, convolution taps, the router and the experts' biases stay F32 in every one.
 */
#ifndef HR_CONVERT_PLAN_H
#define HR_CONVERT_PLAN_H

#include "model/model.h"

/* A name that a user gives, and what it stands for. */
typedef struct hr_mix {
    const char *name;   /* "Q4_K_M" */
    hr_dtype dtype;     /* of most matrices */
    uint32_t file_type; /* general.file_type */
    bool more_bits;     /* some attn_v and ffn_down get Q6_K */
} hr_mix;

/* Upper or lower case; "q4_k" and "q5_k" are the _m mixes. NULL for an unknown name. */
const hr_mix *hr_mix_find(const char *name);
extern const char hr_mix_names[]; /* "f32, f16, ..." */

typedef enum hr_part {
    HR_PART_VECTOR, /* and taps: fp32 values of the model's arena */
    HR_PART_ROUTER,
    HR_PART_EMBEDDING, /* with a head of its own beside it */
    HR_PART_HEAD,      /* also an embedding that is the head as well */
    HR_PART_ATTENTION_K,
    HR_PART_ATTENTION_V,
    HR_PART_ATTENTION_OUT,
    HR_PART_FFN_DOWN,
    HR_PART_OTHER,
} hr_part;

typedef struct hr_plan_tensor {
    char name[64];
    int32_t layer; /* -1: outside the layers */
    hr_part part;
    uint32_t rank;
    uint64_t shape[3]; /* slowest first */
    /* Where the values are: [n_slabs] matrices of rows x cols, `stride` bytes apart from `first`, or, for
     * HR_PART_VECTOR, n_slabs = 1 and `values`. */
    const hr_matrix *first;
    size_t stride;
    const float *values;
    uint32_t n_slabs, rows, cols;
    hr_dtype target;
    uint64_t offset; /* of the data, from the start of the data; set by the header's writer */
} hr_plan_tensor;

typedef struct hr_plan {
    hr_plan_tensor *tensors; /* [n_tensors] in the file's order: outside the layers, then layer by layer, by name */
    uint32_t n_tensors;
    uint64_t n_parameters, n_shared; /* values; n_shared counts one expert of each stack */
    uint64_t n_bytes;                /* of all tensors, without padding */
} hr_plan;

/* Borrows from model. E_UNSUPPORTED for a model that GGUF cannot say (biased convolutions, other routing). */
headrace_status hr_plan_make(const hr_model *model, const hr_mix *mix, bool has_importance, hr_plan *out,
                             headrace_error *err);
void hr_plan_free(hr_plan *plan);

/* Slab e of a tensor that is no vector. */
static inline const hr_matrix *hr_plan_slab(const hr_plan_tensor *tensor, uint32_t e)
{
    return (const hr_matrix *)(const void *)((const char *)tensor->first + e * tensor->stride);
}

/* The type of a matrix of `cols` columns. i_attention: its ordinal among the n_attention attention layers (of attn_v);
 * layer of n_layers. For tests. */
typedef struct hr_mix_question {
    hr_part part;
    uint32_t cols;
    uint32_t layer, n_layers, i_attention, n_attention, n_experts;
    bool has_importance;
} hr_mix_question;
hr_dtype hr_mix_choose(const hr_mix *mix, const hr_mix_question *question);

#endif
