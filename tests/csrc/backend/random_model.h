/* Small models with random weights, made in memory, and a slow forward pass that shares no code with the backend. */
#ifndef HR_TESTS_BACKEND_RANDOM_MODEL_H
#define HR_TESTS_BACKEND_RANDOM_MODEL_H

#include "model/model.h"

typedef struct random_model_options {
    const char *pattern; /* one letter a layer: c convolution, a attention */
    uint32_t hidden_size, n_heads, n_kv_heads, head_dim, ffn_dim, conv_length, vocab_size;
    uint32_t n_experts, n_experts_used, expert_ffn_dim, n_dense_layers; /* n_experts 0: dense */
    bool conv_bias, norm_topk_prob, use_expert_bias, is_untied;
    float routed_scaling_factor;
    hr_dtype dtype; /* HR_F32 or HR_BF16; quantised, if the widths allow it, for all but slow_forward */
    bool is_mixed;  /* every third matrix is BF16 instead */
    uint64_t seed;
} random_model_options;

/* A sensible dense model; tests change what they are about. */
random_model_options random_model_defaults(void);
hr_model *random_model_create(const random_model_options *options);
void random_model_destroy(hr_model *model);

/* Logits [n, V] of every position in double precision, straight from the formulas: the convolution is summed over the
 * whole past, attention over all keys, experts one row at a time. */
void slow_forward(const hr_model *model, const int32_t *ids, uint32_t n, double *logits);

#endif
