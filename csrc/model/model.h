/* What the network is: sizes, layer table, weights by role. Pure data, shared by every backend.
 *
 * Equations are numbered in docs/lfm2.md; this table is what they are applied to. A hr_model is immutable after open
 * and may be read from any thread. Matrices stay in the file's own dtype, where the kernel mapped them; only vectors
 * (norms, taps, biases) are converted to fp32 in the model's arena.
 *
 * Letters of shapes, used in every comment of the project: T rows (tokens) in a step, S sequences, H hidden size, Nq /
 * Nkv query and key-value heads, D head size, F dense feed-forward width, E experts, K experts a token, M expert width,
 * L taps of the convolution, V vocabulary, P tokens a page. Shapes are row-major, last index contiguous.
 */
#ifndef HR_MODEL_MODEL_H
#define HR_MODEL_MODEL_H

#include "base/arena.h"
#include "format/gguf.h"
#include "format/safetensors.h"

enum { HR_EOS_MAX = 8, HR_LAYERS_MAX = 256, HR_EXPERTS_MAX = 512, HR_CONV_LENGTH_MIN = 2, HR_CONV_LENGTH_MAX = 8 };
/* The largest sizes that are believed. Any product of three of them fits 64 bits. */
enum {
    HR_VOCAB_MAX = 1 << 22,
    HR_HIDDEN_MAX = 1 << 16,
    HR_WIDTH_MAX = 1 << 20, /* of a feed-forward */
    HR_HEADS_MAX = 1024,
    HR_HEAD_DIM_MAX = 1024,
    HR_POSITIONS_MAX = 1 << 24,
};

/* A weight matrix [rows = outputs, cols = inputs], applied as y = W x. */
typedef struct hr_matrix {
    const void *data;    /* borrowed from the mapping; no alignment promised beyond the element's */
    const void *in_file; /* the same bytes in the mapping, for messages: data itself, unless elements lie at odd
                            addresses there and data is a copy. NULL where there is no file */
    hr_dtype dtype;
    uint32_t rows, cols;
    size_t row_bytes;
    bool is_packed; /* set by a backend on matrices of its own, in its own order of bytes; never in a model */
} hr_matrix;

typedef enum hr_operator { HR_OPERATOR_CONV, HR_OPERATOR_ATTENTION } hr_operator;

typedef struct hr_conv_weights {
    hr_matrix in_proj;      /* [3H, H], rows in the order B, C, x */
    const float *taps;      /* [H, L], oldest input first */
    hr_matrix out_proj;     /* [H, H] */
    const float *in_bias;   /* [3H], NULL unless conv_bias */
    const float *conv_bias; /* [H], NULL unless conv_bias */
    const float *out_bias;  /* [H], NULL unless conv_bias */
} hr_conv_weights;

typedef struct hr_attention_weights {
    hr_matrix q, k, v;            /* [Nq D, H], [Nkv D, H], [Nkv D, H] */
    hr_matrix out;                /* [H, Nq D] */
    const float *q_norm, *k_norm; /* [D] */
} hr_attention_weights;

/* A gated feed-forward: down( silu(gate n) * (up n) ). One for a dense layer, E for an expert layer. */
typedef struct hr_ffn_weights {
    hr_matrix gate, up; /* [F, H] (experts: [M, H]) */
    hr_matrix down;     /* [H, F] (experts: [H, M]) */
} hr_ffn_weights;

typedef struct hr_layer {
    hr_operator operator;
    const float *operator_norm, *ffn_norm; /* [H] */
    hr_conv_weights conv;                  /* if operator is conv */
    hr_attention_weights attention;        /* if operator is attention */
    bool is_moe;
    hr_ffn_weights dense;          /* unless is_moe */
    hr_matrix router;              /* [E, H], if is_moe */
    const float *expert_bias;      /* [E], NULL unless use_expert_bias */
    const hr_ffn_weights *experts; /* [E], if is_moe */
    uint32_t state_index;          /* ordinal among layers of its operator: which KV plane or conv state is its own */
} hr_layer;

typedef struct hr_arch {
    char name[16]; /* "lfm2" or "lfm2moe" */
    uint32_t n_layers, n_attention_layers, n_conv_layers;
    uint32_t hidden_size; /* H */
    uint32_t n_heads, n_kv_heads, head_dim;
    uint32_t ffn_dim; /* F of the dense layers, as found in the tensors */
    uint32_t n_experts, n_experts_used, expert_ffn_dim, n_dense_layers; /* E, K, M; 0 for dense models */
    uint32_t conv_length;                                               /* L, 2 .. 8 */
    uint32_t vocab_size;                                                /* V, rows of the embedding */
    uint32_t max_positions;
    float norm_eps, rope_theta;
    float routed_scaling_factor;
    bool norm_topk_prob, use_expert_bias;
    int32_t bos_id, pad_id; /* -1 when absent */
    uint32_t n_eos_ids;
    int32_t eos_ids[HR_EOS_MAX];
} hr_arch;

typedef enum hr_model_format { HR_MODEL_SAFETENSORS, HR_MODEL_GGUF } hr_model_format;

/* Recommended sampling values; NAN or a negative number where the source says nothing. */
typedef struct hr_sampling_hint {
    float temperature, top_p, min_p, repetition_penalty;
    int32_t top_k;
    const char *source; /* "generation_config.json", "gguf", "model card: LFM2", "none" */
} hr_sampling_hint;

typedef struct hr_model {
    hr_arch arch;
    hr_layer *layers;    /* [n_layers] */
    hr_matrix embedding; /* [V, H] */
    hr_matrix head;      /* [V, H]; the same bytes as embedding when tied */
    bool is_tied;
    bool is_dummy;           /* matrices have no bytes (data is NULL): a backend makes random ones or refuses */
    const float *final_norm; /* [H] */
    uint64_t n_parameters, n_parameters_active;
    hr_model_format format;
    const char *path; /* as given; the folder for safetensors, the file for GGUF */
    const char *name;
    hr_tensor_file *file;       /* weights; points into gguf or safetensors below; NULL with skip_weights */
    hr_tensor_file safetensors; /* if format is safetensors */
    hr_gguf gguf;               /* if format is gguf (opened even with skip_weights: it holds the tokenizer) */
    hr_sampling_hint sampling;
    hr_arena arena; /* owns layers, vectors, names */
} hr_model;

typedef struct hr_model_open_options {
    bool skip_weights;  /* arch from the config only; layers and matrices stay empty */
    bool dummy_weights; /* arch from the config, layers without bytes (dummy.c); weight files need not exist */
    bool ignore_generation_config;
    void (*progress)(uint64_t done, uint64_t total, void *user);
    void *progress_user;
} hr_model_open_options;

/* Opens a folder or a .gguf file, checks every field and every tensor, binds names to roles. *out belongs to the caller
 * until hr_model_close; NULL on failure. Errors as headrace_model_open. */
headrace_status hr_model_open(const char *path, const hr_model_open_options *options, hr_model **out,
                              headrace_error *err);
void hr_model_close(hr_model *model);

/* Width of the widest dense feed-forward; 0 if there is none. */
static inline uint32_t hr_model_dense_width(const hr_model *model)
{
    uint32_t width = 0;

    for (uint32_t i = 0; i < model->arch.n_layers; i++)
        if (!model->layers[i].is_moe && model->layers[i].dense.gate.rows > width)
            width = model->layers[i].dense.gate.rows;
    return width;
}

/* Bytes of convolution state (fp32, L-1 columns of every conv layer) and of KV a token, both for one sequence. */
static inline size_t hr_arch_state_values(const hr_arch *arch)
{
    return (size_t)arch->n_conv_layers * (arch->conv_length - 1) * arch->hidden_size;
}
static inline size_t hr_arch_kv_values_per_token(const hr_arch *arch)
{
    return (size_t)2 * arch->n_attention_layers * arch->n_kv_heads * arch->head_dim;
}
/* Rows to run again after a prefix hit so that the convolution state is exact: (L-1) x conv layers. */
static inline uint32_t hr_arch_warmup_rows(const hr_arch *arch)
{
    return (arch->conv_length - 1) * arch->n_conv_layers;
}

#endif
