/* Importance of input columns, from a calibration text to a file that a converter reads.
 *
 * The backend collects (backend/importance.h); here each sum gets the names of the matrices that read it, as they are
 * called in GGUF, and leaves as an imatrix file. The output head of a model with tied embeddings is the embedding's
 * matrix and is named so.
 */
#include "api/api.h"

#include "backend/importance.h"
#include "convert/imatrix.h"

#include <stdio.h>

enum { NAME_BYTES = 64, MATRICES_A_LAYER = 7 };

struct headrace_importance {
    headrace_model *model;
    hr_importance *sums;
    headrace_compute *compute;
    uint64_t n_rows;
    uint32_t n_sequences, max_ids;
};

headrace_status headrace_importance_open(headrace_model *model, const headrace_compute_options *options, size_t max_ids,
                                         headrace_importance **out, headrace_error *err)
{
    headrace_importance *m;
    headrace_status status;

    *out = NULL;
    HR_PASS(hr_need_weights(model, err));
    m = calloc(1, sizeof *m);
    if (!m)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory to collect importance");
    m->model = model;
    m->max_ids = (uint32_t)max_ids;
    HR_TRY_GOTO(failed, hr_importance_create(model->network, &m->sums, err));
    HR_TRY_GOTO(failed, hr_compute_open(model, options, max_ids, hr_importance_tap, m->sums, &m->compute, err));
    *out = m;
    return HEADRACE_OK;
failed:
    headrace_importance_close(m);
    return status;
}

void headrace_importance_close(headrace_importance *importance)
{
    if (!importance)
        return;
    headrace_compute_close(importance->compute);
    hr_importance_destroy(importance->sums);
    free(importance);
}

headrace_status headrace_importance_add(headrace_importance *importance, const int32_t *ids, size_t n_ids,
                                        headrace_error *err)
{
    HR_PASS(headrace_compute_run(importance->compute, ids, n_ids, NULL, err));
    importance->n_rows += n_ids;
    importance->n_sequences++;
    return hr_importance_check(importance->sums, importance->n_rows, err);
}

/* ---------------------------------------------------------------- what was seen */

void headrace_importance_get_info(const headrace_importance *importance, headrace_importance_info *out)
{
    const hr_model *network = importance->model->network;

    *out = (headrace_importance_info){.n_rows = importance->n_rows, .n_sequences = importance->n_sequences};
    for (uint32_t layer = 0; layer < network->arch.n_layers; layer++) {
        const hr_input_sums *s = hr_importance_layer(importance->sums, layer, HR_INPUT_FFN);

        for (uint32_t e = 0; network->layers[layer].is_moe && e < s->n_experts; e++) {
            if (out->n_experts == 0 || s->rows[e] < out->least_expert_rows)
                out->least_expert_rows = s->rows[e];
            out->n_experts++;
            out->n_unseen_experts += s->rows[e] == 0;
        }
    }
}

/* ---------------------------------------------------------------- names */

typedef struct named_sums {
    hr_imatrix_sums *items;
    char (*names)[NAME_BYTES];
    size_t n;
} named_sums;

static void add_named(named_sums *list, const hr_input_sums *sums, const char *prefix, const char *name)
{
    (void)snprintf(list->names[list->n], NAME_BYTES, "%s%s.weight", prefix, name);
    list->items[list->n] = (hr_imatrix_sums){.name = list->names[list->n],
                                             .n_experts = sums->n_experts,
                                             .n_columns = sums->n_columns,
                                             .sums = sums->sums,
                                             .rows = sums->rows};
    list->n++;
}

static void add_layer(named_sums *list, const headrace_importance *m, uint32_t index)
{
    const hr_layer *layer = &m->model->network->layers[index];
    const hr_input_sums *in = hr_importance_layer(m->sums, index, HR_INPUT_OPERATOR);
    const hr_input_sums *out = hr_importance_layer(m->sums, index, HR_INPUT_OPERATOR_OUT);
    const hr_input_sums *ffn = hr_importance_layer(m->sums, index, HR_INPUT_FFN);
    const hr_input_sums *down = hr_importance_layer(m->sums, index, HR_INPUT_DOWN);
    char prefix[24];

    (void)snprintf(prefix, sizeof prefix, "blk.%u.", index);
    switch (layer->operator) {
    case HR_OPERATOR_CONV:
        add_named(list, in, prefix, "shortconv.in_proj");
        add_named(list, out, prefix, "shortconv.out_proj");
        break;
    case HR_OPERATOR_ATTENTION:
        add_named(list, in, prefix, "attn_q");
        add_named(list, in, prefix, "attn_k");
        add_named(list, in, prefix, "attn_v");
        add_named(list, out, prefix, "attn_output");
        break;
    }
    add_named(list, ffn, prefix, layer->is_moe ? "ffn_gate_exps" : "ffn_gate");
    add_named(list, ffn, prefix, layer->is_moe ? "ffn_up_exps" : "ffn_up");
    add_named(list, down, prefix, layer->is_moe ? "ffn_down_exps" : "ffn_down");
}

headrace_status headrace_importance_save(const headrace_importance *importance, const char *path, const char *dataset,
                                         headrace_error *err)
{
    const hr_model *network = importance->model->network;
    size_t capacity = (size_t)network->arch.n_layers * MATRICES_A_LAYER + 1;
    named_sums list = {.items = calloc(capacity, sizeof *list.items), .names = calloc(capacity, sizeof *list.names)};
    const hr_imatrix_source source = {.datasets = &dataset,
                                      .n_datasets = dataset ? 1 : 0,
                                      .chunk_count = importance->n_sequences,
                                      .chunk_size = importance->max_ids,
                                      .model = network->file};
    headrace_status status;

    if (importance->n_rows == 0)
        status = hr_fail(err, HEADRACE_E_ARGUMENT, "no token was run: there is nothing to save");
    else if (!list.items || !list.names)
        status = hr_fail(err, HEADRACE_E_MEMORY, "no memory for the names of %zu matrices", capacity);
    else {
        for (uint32_t i = 0; i < network->arch.n_layers; i++)
            add_layer(&list, importance, i);
        add_named(&list, hr_importance_head(importance->sums), "", network->is_tied ? "token_embd" : "output");
        status = hr_imatrix_write(path, list.items, list.n, &source, err);
    }
    free(list.items);
    free(list.names);
    return status;
}
