/* The plain table: fp32, loops in plain order. It is the definition that every faster path is compared with, and reads
 * like docs/lfm2.md; equation numbers below are of that file.
 *
 * The one concession to speed: a matrix product works on sixteen outputs at a time, interleaved. Each output still adds
 * its products one by one from column 0 upwards, so the numbers are those of the plain double loop; the sixteen sums
 * only keep the adder busy while each waits for its own last addition.
 */
#include "backend/cpu/cpu_packed.h"
#include "base/numeric.h"

#include <math.h>
#include <string.h>

enum { OUTPUTS_AT_ONCE = 16, ALIGNMENT = 64, HEAD_DIM_AT_ONCE = 64 };

static size_t prepared_bytes(uint32_t cols)
{
    return ((size_t)cols * sizeof(float) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static void prepare(const float *x, uint32_t cols, void *prepared)
{
    memcpy(prepared, x, (size_t)cols * sizeof *x);
}

/* One row of weights in fp32, and OUTPUTS_AT_ONCE rows interleaved: column c of all of them side by side. */
static size_t linear_scratch_bytes(uint32_t cols)
{
    return (1 + OUTPUTS_AT_ONCE) * prepared_bytes(cols);
}

/* Weights of outputs [first, first + n) as [cols, OUTPUTS_AT_ONCE]; idle outputs are zero. */
static const float *interleave(const hr_matrix *w, uint32_t first, uint32_t n, void *scratch)
{
    float *row = scratch, *weights = row + prepared_bytes(w->cols) / sizeof *row;

    for (uint32_t o = 0; o < OUTPUTS_AT_ONCE; o++) {
        if (o < n)
            hr_dequantize(w->dtype, (const unsigned char *)w->data + (size_t)(first + o) * w->row_bytes, row, w->cols);
        for (size_t c = 0; c < w->cols; c++)
            weights[c * OUTPUTS_AT_ONCE + o] = o < n ? row[c] : 0;
    }
    return weights;
}

/* y[o] = sum_c w[o][c] x[c], c ascending. */
static void dot_outputs(const float *weights, const float *x, uint32_t cols, uint32_t n, float *y)
{
    float sum[OUTPUTS_AT_ONCE] = {0};

    for (size_t c = 0; c < cols; c++) {
        for (size_t o = 0; o < OUTPUTS_AT_ONCE; o++)
            sum[o] += weights[c * OUTPUTS_AT_ONCE + o] * x[c];
    }
    memcpy(y, sum, n * sizeof *y);
}

static void linear(const hr_matrix *w, uint32_t begin, uint32_t end, const void *prepared, uint32_t n_rows, float *y,
                   size_t y_stride, void *scratch)
{
    size_t row_bytes = prepared_bytes(w->cols);

    for (uint32_t first = begin; first < end; first += OUTPUTS_AT_ONCE) {
        uint32_t n = end - first < OUTPUTS_AT_ONCE ? end - first : OUTPUTS_AT_ONCE;
        const float *weights = interleave(w, first, n, scratch);

        for (uint32_t r = 0; r < n_rows; r++)
            dot_outputs(weights, (const float *)(const void *)((const unsigned char *)prepared + r * row_bytes),
                        w->cols, n, y + r * y_stride + (first - begin));
    }
}

/* Equation 2. */
static void rmsnorm(const float *x, const float *w, uint32_t n, float eps, float *y)
{
    float sum = 0, scale;

    for (uint32_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    scale = 1.0f / sqrtf(sum / (float)n + eps);
    for (uint32_t i = 0; i < n; i++)
        y[i] = w[i] * (x[i] * scale);
}

/* Equation 15, without its matrices. */
static void swiglu(const float *gate, const float *up, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

static void add_scaled(float *y, const float *x, float scale, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] += x[i] * scale;
}

/* Components [first, first + n) of one stored key or value vector. */
static void load_kv(const hr_kv_view *kv, bool is_key, uint32_t position, uint32_t first, uint32_t n, float *out)
{
    const unsigned char *page = kv->pool + (size_t)kv->pages[position / kv->page_tokens] * kv->page_bytes;
    size_t slot = position % kv->page_tokens, step = is_key ? kv->page_tokens : 1;
    size_t at = is_key ? first * step + slot : slot * kv->head_dim + first;

    page += is_key ? kv->k_offset : kv->v_offset;
    for (size_t i = 0; i < n; i++) {
        uint16_t h;

        if (kv->dtype == HR_KV_F32) {
            memcpy(out + i, page + (at + i * step) * sizeof *out, sizeof *out);
        } else {
            memcpy(&h, page + (at + i * step) * sizeof h, sizeof h);
            out[i] = hr_bf16_to_f32(h);
        }
    }
}

/* Equation 11: scaled scores of one head, into scores[0 .. n_context). The head dimension is read in pieces so that no
 * buffer depends on its size; the sum still ascends. */
static void score(const float *q, const hr_kv_view *kv, uint32_t n_context, float scale, float *scores)
{
    float key[HEAD_DIM_AT_ONCE];

    for (uint32_t t = 0; t < n_context; t++) {
        float sum = 0;

        for (uint32_t first = 0; first < kv->head_dim; first += HEAD_DIM_AT_ONCE) {
            uint32_t n = kv->head_dim - first < HEAD_DIM_AT_ONCE ? kv->head_dim - first : HEAD_DIM_AT_ONCE;

            load_kv(kv, true, t, first, n, key);
            for (uint32_t i = 0; i < n; i++)
                sum += q[first + i] * key[i];
        }
        scores[t] = sum * scale;
    }
}

/* Equation 12: softmax in place. */
static void softmax(float *scores, uint32_t n)
{
    float largest = scores[0], sum = 0;

    for (uint32_t t = 1; t < n; t++)
        largest = scores[t] > largest ? scores[t] : largest;
    for (uint32_t t = 0; t < n; t++) {
        scores[t] = expf(scores[t] - largest);
        sum += scores[t];
    }
    for (uint32_t t = 0; t < n; t++)
        scores[t] /= sum;
}

/* Equation 13: the values' weighted sum of one head. */
static void mix_values(const float *weights, const hr_kv_view *kv, uint32_t n_context, float *out)
{
    float value[HEAD_DIM_AT_ONCE];

    memset(out, 0, kv->head_dim * sizeof *out);
    for (uint32_t first = 0; first < kv->head_dim; first += HEAD_DIM_AT_ONCE) {
        uint32_t n = kv->head_dim - first < HEAD_DIM_AT_ONCE ? kv->head_dim - first : HEAD_DIM_AT_ONCE;

        for (uint32_t t = 0; t < n_context; t++) {
            load_kv(kv, false, t, first, n, value);
            for (uint32_t i = 0; i < n; i++)
                out[first + i] += weights[t] * value[i];
        }
    }
}

static size_t attention_scratch_floats(uint32_t n_heads, uint32_t head_dim, uint32_t max_context)
{
    (void)n_heads;
    (void)head_dim;
    return max_context;
}

static void attention(const hr_attention *job, float *scores)
{
    for (uint32_t i = 0; i < job->n_rows * job->n_heads; i++) {
        size_t at = i / job->n_heads * job->row_stride + (size_t)(i % job->n_heads) * job->kv->head_dim;
        uint32_t n_context = job->n_context + i / job->n_heads;

        score(job->q + at, job->kv, n_context, job->scale, scores);
        softmax(scores, n_context);
        mix_values(scores, job->kv, n_context, job->out + at);
    }
}

void hr_cpu_store_key(const float *x, uint32_t n, hr_kv_dtype dtype, uint32_t page_tokens, void *dst)
{
    unsigned char *at = dst;

    for (uint32_t i = 0; i < n; i++) {
        uint16_t h = hr_f32_to_bf16(x[i]);

        if (dtype == HR_KV_F32)
            memcpy(at, x + i, sizeof *x);
        else
            memcpy(at, &h, sizeof h);
        at += page_tokens * (dtype == HR_KV_F32 ? sizeof *x : sizeof h);
    }
}

static void store_kv(const float *x, uint32_t n, hr_kv_dtype dtype, void *dst)
{
    unsigned char *at = dst;

    if (dtype == HR_KV_F32) {
        memcpy(at, x, n * sizeof *x);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint16_t h = hr_f32_to_bf16(x[i]);

        memcpy(at + i * sizeof h, &h, sizeof h);
    }
}

/* Equations 5 to 7, without the output projection. */
static void conv_row(const float *b, const float *c, const float *x, const float *taps, const float *bias, uint32_t n,
                     uint32_t length, float *state, float *bx, float *y)
{
    for (uint32_t h = 0; h < n; h++) {
        float u = b[h] * x[h], sum = 0;

        for (uint32_t j = 0; j + 1 < length; j++)
            sum += taps[(size_t)h * length + j] * state[(size_t)j * n + h];
        sum += taps[(size_t)h * length + length - 1] * u;
        if (bias)
            sum += bias[h];
        for (uint32_t j = 0; j + 2 < length; j++)
            state[(size_t)j * n + h] = state[(size_t)(j + 1) * n + h];
        state[(size_t)(length - 2) * n + h] = u;
        bx[h] = u;
        y[h] = c[h] * sum;
    }
}

const hr_cpu_kernels hr_cpu_kernels_plain = {
    .name = "plain",
    .prepared_bytes = prepared_bytes,
    .prepare = prepare,
    .linear_scratch_bytes = linear_scratch_bytes,
    .linear = linear,
    .prepare_int8 = hr_cpu_plain_prepare_int8,
    .linear_packed = hr_cpu_plain_linear_packed,
    .rmsnorm = rmsnorm,
    .swiglu = swiglu,
    .add_scaled = add_scaled,
    .attention_scratch_floats = attention_scratch_floats,
    .attention = attention,
    .store_kv = store_kv,
    .conv_row = conv_row,
};
