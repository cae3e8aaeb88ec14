/* See compare.h.
 *
 * Only left's values are kept; right's are compared as they come. Both sides emit the rows of a tap in the order of
 * positions, however they were cut into steps, so a count of rows a tap is all that is needed to know where a value
 * belongs.
 */
#include "backend/compare.h"

#include <math.h>
#include <string.h>

enum { CHUNK_DEFAULT = 512, PAGE_TOKENS_DEFAULT = 16, DEVICE_PAGE_TOKENS = 64 };

typedef struct tap_record {
    hr_tap tap;
    uint32_t layer, cols;
    uint32_t n_left, n_right; /* rows so far */
    float *left;              /* [n, cols] */
    double left_squares, difference_squares, max_abs;
    uint32_t at_row, at_col; /* of max_abs */
    bool exceeds;
    uint32_t first_row, first_col; /* of the first value that exceeds */
    float first_left, first_right;
} tap_record;

typedef struct comparison {
    const hr_model *model;
    uint32_t n;
    double tolerance;
    bool is_right;
    bool no_memory, does_not_fit; /* a tap function cannot return a status */
    tap_record *records;          /* in the order of first appearance */
    uint32_t n_records, n_records_max;
    uint32_t *index; /* [(n_layers + 1) x HR_TAP_COUNT]: 1 + record, or 0 */
} comparison;

typedef struct side {
    hr_backend *backend;
    const char *compute, *kv;
    uint32_t chunk;
} side;

static double allowed(const comparison *c, const tap_record *r)
{
    double rms = r->n_left > 0 ? sqrt(r->left_squares / ((double)r->n_left * r->cols)) : 0;

    return r->tap == HR_TAP_ROUTER_IDS ? 0.5 : c->tolerance * (rms > 1 ? rms : 1);
}

static tap_record *record_of(comparison *c, hr_tap tap, uint32_t layer, uint32_t cols)
{
    uint32_t *index = &c->index[(size_t)layer * HR_TAP_COUNT + tap];
    tap_record *r;

    if (*index > 0)
        return &c->records[*index - 1];
    if (c->is_right || c->n_records == c->n_records_max)
        return NULL; /* left stayed silent about it: nothing to compare with */
    r = &c->records[c->n_records++];
    *index = c->n_records;
    *r = (tap_record){.tap = tap, .layer = layer, .cols = cols, .left = calloc((size_t)c->n * cols, sizeof(float))};
    c->no_memory |= r->left == NULL;
    return r;
}

static void keep(tap_record *r, const float *data, uint32_t rows)
{
    size_t n = (size_t)rows * r->cols;

    memcpy(r->left + (size_t)r->n_left * r->cols, data, n * sizeof *data);
    for (size_t i = 0; i < n; i++)
        r->left_squares += (double)data[i] * (double)data[i];
    r->n_left += rows;
}

/* Two values that are the same NaN or infinity agree; otherwise a NaN is as far away as can be. */
static double distance(float a, float b)
{
    double d;

    if (a == b || (isnan(a) && isnan(b)))
        return 0;
    d = fabs((double)a - (double)b);
    return isnan(d) ? HUGE_VAL : d;
}

static void hold_against(const comparison *c, tap_record *r, const float *data, uint32_t rows)
{
    double limit = allowed(c, r);

    for (uint32_t row = r->n_right; row < r->n_right + rows; row++) {
        for (uint32_t col = 0; col < r->cols; col++) {
            float mine = r->left[(size_t)row * r->cols + col], other = data[(size_t)(row - r->n_right) * r->cols + col];
            double d = distance(mine, other);

            r->difference_squares += d * d;
            if (d > r->max_abs) {
                r->max_abs = d;
                r->at_row = row;
                r->at_col = col;
            }
            if (d > limit && !r->exceeds) {
                r->exceeds = true;
                r->first_row = row;
                r->first_col = col;
                r->first_left = mine;
                r->first_right = other;
            }
        }
    }
    r->n_right += rows;
}

static void on_tap(void *user, hr_tap tap, uint32_t layer, const float *data, uint32_t rows, uint32_t cols)
{
    comparison *c = user;
    tap_record *r = record_of(c, tap, layer, cols);

    if (!r || c->no_memory || c->does_not_fit)
        return;
    c->does_not_fit = cols != r->cols || rows > c->n - (c->is_right ? r->n_right : r->n_left);
    if (c->does_not_fit)
        return;
    if (c->is_right)
        hold_against(c, r, data, rows);
    else
        keep(r, data, rows);
}

/* ---------------------------------------------------------------- running */

static void fill_batch(hr_batch *batch, const int32_t *ids, uint32_t first, uint32_t n, uint32_t page_tokens)
{
    uint32_t n_pages = (first + n + page_tokens - 1) / page_tokens;

    batch->n_rows = batch->n_outputs = n;
    batch->n_spans = 1;
    batch->n_page_refs = n_pages;
    memcpy(batch->token_ids, ids + first, n * sizeof *ids);
    for (uint32_t i = 0; i < n_pages; i++)
        batch->pages[i] = i;
    for (uint32_t i = 0; i < n; i++)
        batch->outputs[i] = (hr_output){.row = i, .n_logprobs = -1, .score_id = -1};
    batch->spans[0] = (hr_span){.n_rows = n,
                                .start_position = first,
                                .n_pages = n_pages,
                                .sequence = 1,
                                .n_prompt = first + n, /* all rows are of the prompt */
                                .is_fresh = first == 0};
}

static headrace_status run_side(comparison *c, const hr_compare_side *given, const int32_t *ids, side *s,
                                headrace_error *err)
{
    const hr_backend_ops *ops = given->ops;
    hr_backend_options options = given->options;
    hr_kv_dtype kv = options.kv_dtype;

    if (options.page_tokens == 0)
        options.page_tokens = ops->device_memory ? DEVICE_PAGE_TOKENS : PAGE_TOKENS_DEFAULT;
    s->chunk = given->chunk > 0 ? given->chunk : CHUNK_DEFAULT;
    s->chunk = s->chunk < c->n ? s->chunk : c->n;
    options.max_rows = options.max_outputs = s->chunk;
    options.max_spans = 1;
    options.max_page_refs = (c->n + options.page_tokens - 1) / options.page_tokens;
    options.tap = on_tap;
    options.tap_user = c;
    HR_PASS(ops->open(c->model, &options, options.max_page_refs, 1, &s->backend, err));
    s->compute = ops->compute_name(s->backend);
    s->kv = kv == HR_KV_F32 || (kv == HR_KV_AUTO && options.exact) ? "f32" : "bf16";
    for (uint32_t at = 0; at < c->n; at += s->chunk) {
        hr_batch *batch = ops->batch(s->backend, 0);

        fill_batch(batch, ids, at, c->n - at < s->chunk ? c->n - at : s->chunk, options.page_tokens);
        HR_PASS(ops->step_begin(s->backend, batch, err));
        HR_PASS(ops->step_wait(s->backend, err));
        if (c->no_memory)
            return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the values of %u tokens; compare fewer", c->n);
        if (c->does_not_fit)
            return hr_fail(err, HEADRACE_E_INTERNAL, "the two paths emit values of different shapes");
    }
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- reporting */

static void write_key(hr_buffer *json, const char *key)
{
    hr_json_string(json, key, strlen(key));
    hr_buffer_add_char(json, ':');
}

static void write_text(hr_buffer *json, const char *key, const char *text)
{
    write_key(json, key);
    hr_json_string(json, text, strlen(text));
    hr_buffer_add_char(json, ',');
}

static void write_uint(hr_buffer *json, const char *key, uint64_t value)
{
    write_key(json, key);
    hr_json_uint(json, value);
    hr_buffer_add_char(json, ',');
}

static void write_double(hr_buffer *json, const char *key, double value)
{
    write_key(json, key);
    hr_json_double(json, value);
    hr_buffer_add_char(json, ',');
}

static void write_side(hr_buffer *json, const char *key, const side *s)
{
    write_key(json, key);
    hr_buffer_add_char(json, '{');
    write_text(json, "compute", s->compute);
    write_uint(json, "chunk", s->chunk);
    write_key(json, "kv_cache_dtype");
    hr_json_string(json, s->kv, strlen(s->kv));
    hr_buffer_add_text(json, "},");
}

static void write_first(hr_buffer *json, const comparison *c)
{
    const tap_record *r = NULL;

    for (uint32_t i = 0; i < c->n_records && !r; i++)
        r = c->records[i].exceeds ? &c->records[i] : NULL;
    write_key(json, "first_difference");
    if (!r) {
        hr_buffer_add_text(json, "null,");
        return;
    }
    hr_buffer_add_char(json, '{');
    write_text(json, "tap", hr_tap_name(r->tap));
    write_uint(json, "layer", r->layer);
    write_uint(json, "row", r->first_row);
    write_uint(json, "col", r->first_col);
    write_double(json, "left", (double)r->first_left);
    write_double(json, "right", (double)r->first_right);
    write_key(json, "allowed");
    hr_json_double(json, allowed(c, r));
    hr_buffer_add_text(json, "},");
}

static void write_record(hr_buffer *json, const tap_record *r)
{
    double left_count = (double)r->n_left * r->cols, count = (double)r->n_right * r->cols;

    hr_buffer_add_char(json, '{');
    write_text(json, "tap", hr_tap_name(r->tap));
    write_uint(json, "layer", r->layer);
    write_uint(json, "rows", r->n_right);
    write_uint(json, "cols", r->cols);
    write_double(json, "max_abs", r->max_abs);
    write_uint(json, "at_row", r->at_row);
    write_uint(json, "at_col", r->at_col);
    write_double(json, "rms", count > 0 ? sqrt(r->difference_squares / count) : 0);
    write_double(json, "left_rms", left_count > 0 ? sqrt(r->left_squares / left_count) : 0);
    hr_buffer_add_text(json, r->exceeds ? "\"exceeds\":true}" : "\"exceeds\":false}");
}

static headrace_status report(hr_buffer *json, const comparison *c, const side sides[2], headrace_error *err)
{
    hr_buffer_add_char(json, '{');
    write_uint(json, "n_ids", c->n);
    write_double(json, "tolerance", c->tolerance);
    write_side(json, "left", &sides[0]);
    write_side(json, "right", &sides[1]);
    write_first(json, c);
    hr_buffer_add_text(json, "\"taps\":[");
    for (uint32_t i = 0; i < c->n_records; i++) {
        if (i > 0)
            hr_buffer_add_char(json, ',');
        write_record(json, &c->records[i]);
    }
    hr_buffer_add_text(json, "]}");
    return json->failed ? hr_fail(err, HEADRACE_E_MEMORY, "no memory for the report") : HEADRACE_OK;
}

static headrace_status check_ids(const hr_model *model, const int32_t *ids, uint32_t n, headrace_error *err)
{
    if (n == 0)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "ids", "no ids to compare on");
    if (n > model->arch.max_positions)
        return hr_fail(err, HEADRACE_E_CONTEXT, "%u ids, the model has %u positions", n, model->arch.max_positions);
    for (uint32_t i = 0; i < n; i++) {
        if (ids[i] < 0 || (uint32_t)ids[i] >= model->arch.vocab_size)
            return hr_fail_param(err, HEADRACE_E_ARGUMENT, "ids", "id %d at position %u; the vocabulary has %u ids",
                                 ids[i], i, model->arch.vocab_size);
    }
    return HEADRACE_OK;
}

headrace_status hr_compare(const hr_model *model, const hr_compare_side *left, const hr_compare_side *right,
                           const int32_t *ids, uint32_t n, double tolerance, hr_buffer *json, headrace_error *err)
{
    comparison c = {.model = model, .n = n, .tolerance = tolerance};
    side sides[2] = {0};
    headrace_status status;

    HR_PASS(check_ids(model, ids, n, err));
    c.n_records_max = (model->arch.n_layers + 1) * HR_TAP_COUNT;
    c.records = calloc(c.n_records_max, sizeof *c.records);
    c.index = calloc(c.n_records_max, sizeof *c.index);
    if (!c.records || !c.index) {
        status = hr_fail(err, HEADRACE_E_MEMORY, "no memory to compare %u layers", model->arch.n_layers);
        goto done;
    }
    HR_TRY_GOTO(done, run_side(&c, left, ids, &sides[0], err));
    c.is_right = true;
    HR_TRY_GOTO(done, run_side(&c, right, ids, &sides[1], err));
    HR_TRY_GOTO(done, report(json, &c, sides, err));
done:
    for (uint32_t i = 0; i < 2; i++)
        if (sides[i].backend)
            sides[i].backend->ops->close(sides[i].backend);
    for (uint32_t i = 0; c.records && i < c.n_records; i++)
        free(c.records[i].left);
    free(c.records);
    free(c.index);
    return status;
}
