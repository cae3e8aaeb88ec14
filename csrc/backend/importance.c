/* See importance.h.
 *
 * In a mixture the rows (ffn_norm) are shown before it is known who chose them (router_ids), so they are kept until
 * then; the ids are kept, in rising order, for the activations (ffn_act), which come in that order.
 */
#include "backend/importance.h"

#include <stdlib.h>
#include <string.h>

struct hr_importance {
    const hr_model *model;
    hr_input_sums *inputs; /* [n_layers, HR_INPUT_COUNT], then the head's */
    double *sums;          /* all of them */
    uint64_t *rows;
    float *kept; /* [n_kept, H]: normalised rows of the mixture at hand */
    size_t kept_capacity;
    uint32_t *ids; /* [n_kept, K], rising in each row */
    size_t ids_capacity;
    uint32_t n_kept, n_chosen; /* rows of kept; of ids */
    bool no_memory;
};

static uint32_t columns_of(const hr_model *model, const hr_layer *layer, hr_input input)
{
    switch (input) {
    case HR_INPUT_OPERATOR_OUT:
        return layer->operator== HR_OPERATOR_CONV ? layer->conv.out_proj.cols : layer->attention.out.cols;
    case HR_INPUT_DOWN:
        return layer->is_moe ? layer->experts[0].down.cols : layer->dense.down.cols;
    default:
        return model->arch.hidden_size;
    }
}

/* Fills in the sizes, and with memory the places; returns how many sums and counts that takes. */
static void lay_out(hr_importance *m, size_t *n_sums, size_t *n_rows)
{
    const hr_arch *arch = &m->model->arch;

    *n_sums = *n_rows = 0;
    for (uint32_t i = 0; i <= arch->n_layers * HR_INPUT_COUNT; i++) {
        bool is_head = i == arch->n_layers * HR_INPUT_COUNT;
        const hr_layer *layer = is_head ? NULL : &m->model->layers[i / HR_INPUT_COUNT];
        hr_input input = (hr_input)(i % HR_INPUT_COUNT);
        hr_input_sums *s = &m->inputs[i];

        s->n_columns = is_head ? arch->hidden_size : columns_of(m->model, layer, input);
        s->n_experts = !is_head && layer->is_moe && input >= HR_INPUT_FFN ? arch->n_experts : 1;
        s->sums = m->sums ? m->sums + *n_sums : NULL;
        s->rows = m->rows ? m->rows + *n_rows : NULL;
        *n_sums += (size_t)s->n_experts * s->n_columns;
        *n_rows += s->n_experts;
    }
}

headrace_status hr_importance_create(const hr_model *model, hr_importance **out, headrace_error *err)
{
    hr_importance *m = calloc(1, sizeof *m);
    size_t n_sums, n_rows;

    *out = NULL;
    if (!m)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory to collect importance");
    m->model = model;
    m->inputs = calloc((size_t)model->arch.n_layers * HR_INPUT_COUNT + 1, sizeof *m->inputs);
    if (m->inputs) {
        lay_out(m, &n_sums, &n_rows);
        m->sums = calloc(n_sums, sizeof *m->sums);
        m->rows = calloc(n_rows, sizeof *m->rows);
    }
    if (!m->inputs || !m->sums || !m->rows) {
        hr_importance_destroy(m);
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the importance of %u layers", model->arch.n_layers);
    }
    lay_out(m, &n_sums, &n_rows);
    *out = m;
    return HEADRACE_OK;
}

void hr_importance_destroy(hr_importance *importance)
{
    if (!importance)
        return;
    free(importance->inputs);
    free(importance->sums);
    free(importance->rows);
    free(importance->kept);
    free(importance->ids);
    free(importance);
}

/* ---------------------------------------------------------------- collecting */

static void add_row(hr_input_sums *s, uint32_t expert, const float *row)
{
    double *sums = s->sums + (size_t)expert * s->n_columns;

    for (uint32_t i = 0; i < s->n_columns; i++)
        sums[i] += (double)row[i] * (double)row[i];
    s->rows[expert]++;
}

static void add_rows(hr_input_sums *s, const float *data, uint32_t rows)
{
    for (size_t r = 0; r < rows; r++)
        add_row(s, 0, data + r * s->n_columns);
}

/* Room for n values of `size` bytes in *memory, whatever was there before. */
static bool reserve(void **memory, size_t *capacity, size_t n, size_t size)
{
    if (n <= *capacity)
        return true;
    free(*memory);
    *memory = calloc(n, size);
    *capacity = *memory ? n : 0;
    return *memory != NULL;
}

static void keep_rows(hr_importance *m, const float *data, uint32_t rows, uint32_t cols)
{
    void *memory = m->kept;
    size_t n = (size_t)rows * cols;

    m->n_kept = reserve(&memory, &m->kept_capacity, n, sizeof *m->kept) ? rows : 0;
    m->kept = memory;
    m->n_chosen = 0;
    m->no_memory |= m->n_kept < rows;
    if (m->n_kept > 0)
        memcpy(m->kept, data, n * sizeof *data);
}

static void insert_rising(uint32_t *ids, uint32_t n, uint32_t id)
{
    uint32_t at = n;

    for (; at > 0 && ids[at - 1] > id; at--)
        ids[at] = ids[at - 1];
    ids[at] = id;
}

/* The experts of the kept rows are known: their rows are counted, and who they were is remembered for ffn_act. */
static void share_out(hr_importance *m, hr_input_sums *s, const float *chosen, uint32_t rows, uint32_t K)
{
    void *memory = m->ids;
    bool has_room;

    if (m->n_kept != rows)
        return; /* hr_importance_check will find them missing */
    has_room = reserve(&memory, &m->ids_capacity, (size_t)rows * K, sizeof *m->ids);
    m->ids = memory;
    if (!has_room) {
        m->no_memory = true;
        return;
    }
    m->n_chosen = rows;
    for (size_t r = 0; r < rows; r++) {
        for (uint32_t k = 0; k < K; k++) {
            uint32_t id = (uint32_t)chosen[r * K + k];

            insert_rising(m->ids + r * K, k, id);
            add_row(s, id, m->kept + r * s->n_columns);
        }
    }
}

/* Activations of a mixture: [rows, K, M]. */
static void share_out_activations(hr_importance *m, hr_input_sums *s, const float *data, uint32_t rows)
{
    uint32_t K = m->model->arch.n_experts_used;

    for (size_t i = 0; m->n_chosen == rows && i < (size_t)rows * K; i++)
        add_row(s, m->ids[i], data + i * s->n_columns);
}

void hr_importance_tap(void *user, hr_tap tap, uint32_t layer, const float *data, uint32_t rows, uint32_t cols)
{
    hr_importance *m = user;
    hr_input_sums *inputs = &m->inputs[(size_t)layer * HR_INPUT_COUNT];
    bool is_moe = layer < m->model->arch.n_layers && m->model->layers[layer].is_moe;

    switch (tap) {
    case HR_TAP_OPERATOR_NORM:
        add_rows(&inputs[HR_INPUT_OPERATOR], data, rows);
        break;
    case HR_TAP_CONV_Y:
    case HR_TAP_ATTENTION:
        add_rows(&inputs[HR_INPUT_OPERATOR_OUT], data, rows);
        break;
    case HR_TAP_FFN_NORM:
        if (is_moe)
            keep_rows(m, data, rows, cols);
        else
            add_rows(&inputs[HR_INPUT_FFN], data, rows);
        break;
    case HR_TAP_ROUTER_IDS:
        share_out(m, &inputs[HR_INPUT_FFN], data, rows, cols);
        break;
    case HR_TAP_FFN_ACT:
        if (is_moe)
            share_out_activations(m, &inputs[HR_INPUT_DOWN], data, rows);
        else
            add_rows(&inputs[HR_INPUT_DOWN], data, rows);
        break;
    case HR_TAP_FINAL_NORM:
        add_rows(inputs, data, rows); /* carries layer n_layers, where the head's sums lie */
        break;
    default:
        break;
    }
}

/* ---------------------------------------------------------------- reading */

headrace_status hr_importance_check(const hr_importance *importance, uint64_t n_rows, headrace_error *err)
{
    static const char *const names[HR_INPUT_COUNT] = {"the operator", "the operator's output projection",
                                                      "the feed-forward", "the down projection"};
    const hr_arch *arch = &importance->model->arch;

    if (importance->no_memory)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory to collect importance");
    for (uint32_t i = 0; i <= arch->n_layers * HR_INPUT_COUNT; i++) {
        const hr_input_sums *s = &importance->inputs[i];
        uint64_t n = 0, expected = s->n_experts > 1 ? n_rows * arch->n_experts_used : n_rows;

        for (uint32_t e = 0; e < s->n_experts; e++)
            n += s->rows[e];
        if (n != expected && i == arch->n_layers * HR_INPUT_COUNT)
            return hr_fail(err, HEADRACE_E_UNSUPPORTED, "the device shows %llu of %llu rows that enter the output head",
                           (unsigned long long)n, (unsigned long long)expected);
        if (n != expected)
            return hr_fail(err, HEADRACE_E_UNSUPPORTED,
                           "layer %u: the device shows %llu of %llu rows that enter %s; try --device cpu",
                           i / HR_INPUT_COUNT, (unsigned long long)n, (unsigned long long)expected,
                           names[i % HR_INPUT_COUNT]);
    }
    return HEADRACE_OK;
}

const hr_input_sums *hr_importance_layer(const hr_importance *importance, uint32_t layer, hr_input input)
{
    return &importance->inputs[(size_t)layer * HR_INPUT_COUNT + input];
}

const hr_input_sums *hr_importance_head(const hr_importance *importance)
{
    return &importance->inputs[(size_t)importance->model->arch.n_layers * HR_INPUT_COUNT];
}
