/* Attention of every table of kernels over several blocks and segments: against a loop in double precision, and against
 * itself, bit for bit: a row beside other rows, a context cut into segments, a broken value behind a row's context. */
#include "backend/cpu/cpu_kernels.h"
#include "base/numeric.h"
#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum {
    POSITIONS = 1600, /* three segments and a bit */
    PAGES_MAX = POSITIONS,
    GROUP = 3,
    DIM_MAX = 72,
    ROW = GROUP * DIM_MAX + 5, /* floats between rows */
};

/* A cache with pages in falling order, and queries for any position. */
typedef struct setting {
    const hr_cpu_kernels *table;
    hr_kv_view view;
    unsigned char *pool;
    uint32_t pages[PAGES_MAX];
    float *keys, *values, *q; /* [POSITIONS, d], [POSITIONS, ROW] */
    float *scratch;
} setting;

static void *aligned(size_t n)
{
    void *at = aligned_alloc(64, (n + 63) / 64 * 64);

    assert_non_null(at);
    return at;
}

/* Exact in bf16. */
static float value_of(uint64_t key, uint64_t i)
{
    return hr_bf16_to_f32(hr_f32_to_bf16((float)(4.0 * hr_rng_unit(hr_rng_at(key, i)) - 2.0)));
}

static void store(setting *s, uint32_t t, const float *key, const float *value)
{
    const hr_kv_view *v = &s->view;
    size_t size = v->dtype == HR_KV_F32 ? 4 : 2, slot = t % v->page_tokens;
    unsigned char *page = s->pool + s->pages[t / v->page_tokens] * v->page_bytes;

    hr_cpu_store_key(key, v->head_dim, v->dtype, v->page_tokens, page + v->k_offset + slot * size);
    s->table->store_kv(value, v->head_dim, v->dtype, page + v->v_offset + slot * v->head_dim * size);
}

static setting make_setting(const hr_cpu_kernels *table, uint32_t d, uint32_t page_tokens, hr_kv_dtype dtype)
{
    setting s = {.table = table};
    uint32_t n_pages = (POSITIONS + page_tokens - 1) / page_tokens;
    size_t part = (size_t)page_tokens * d * (dtype == HR_KV_F32 ? 4 : 2);

    s.view = (hr_kv_view){.page_bytes = 3 * part,
                          .k_offset = part,
                          .v_offset = 2 * part,
                          .page_tokens = page_tokens,
                          .head_dim = d,
                          .dtype = dtype};
    s.pool = aligned(n_pages * s.view.page_bytes);
    memset(s.pool, 0xFF, n_pages * s.view.page_bytes); /* NaN where nothing was stored */
    s.keys = aligned(sizeof(float) * POSITIONS * d);
    s.values = aligned(sizeof(float) * POSITIONS * d);
    s.q = aligned(sizeof(float) * POSITIONS * ROW);
    s.scratch = aligned(table->attention_scratch_floats(GROUP, d, POSITIONS) * sizeof(float));
    for (uint32_t i = 0; i < n_pages; i++)
        s.pages[i] = n_pages - 1 - i;
    for (size_t i = 0; i < (size_t)POSITIONS * ROW; i++)
        s.q[i] = value_of(1, i);
    for (uint32_t t = 0; t < POSITIONS; t++) {
        for (size_t c = 0; c < d; c++) {
            s.keys[t * d + c] = value_of(2, t * d + c);
            s.values[t * d + c] = value_of(3, t * d + c);
        }
        store(&s, t, s.keys + (size_t)t * d, s.values + (size_t)t * d);
    }
    return s;
}

static void free_setting(setting *s)
{
    free(s->pool);
    free(s->keys);
    free(s->values);
    free(s->q);
    free(s->scratch);
}

/* Rows of positions [first, first + n); the setting has moved since it was made, so its addresses are set here. */
static hr_attention job_of(setting *s, uint32_t first, uint32_t n, float *out)
{
    s->view.pool = s->pool;
    s->view.pages = s->pages;
    return (hr_attention){.kv = &s->view,
                          .q = s->q + (size_t)first * ROW,
                          .out = out,
                          .row_stride = ROW,
                          .n_rows = n,
                          .n_heads = GROUP,
                          .n_context = first + 1,
                          .scale = 0.3f};
}

static void check_against_double(const setting *s, uint32_t position, const float *out)
{
    static double weights[POSITIONS];
    uint32_t d = s->view.head_dim;

    for (uint32_t g = 0; g < GROUP; g++) {
        const float *q = s->q + (size_t)position * ROW + (size_t)g * d;
        double largest = -HUGE_VAL, sum = 0;

        for (uint32_t t = 0; t <= position; t++) {
            weights[t] = 0;
            for (uint32_t c = 0; c < d; c++)
                weights[t] += (double)q[c] * (double)s->keys[(size_t)t * d + c] * (double)0.3f;
            largest = fmax(largest, weights[t]);
        }
        for (uint32_t t = 0; t <= position; t++)
            sum += weights[t] = exp(weights[t] - largest);
        for (uint32_t c = 0; c < d; c++) {
            double mixed = 0;

            for (uint32_t t = 0; t <= position; t++)
                mixed += weights[t] / sum * (double)s->values[(size_t)t * d + c];
            if (!(fabs(mixed - (double)out[g * d + c]) <= 3e-5))
                fail_msg("%s: D %u, P %u, position %u, head %u, value %u: %g, expected %g", s->table->name, d,
                         s->view.page_tokens, position, g, c, (double)out[g * d + c], mixed);
        }
    }
}

static void assert_same(const setting *s, const float *found, const float *expected, uint32_t position,
                        const char *what)
{
    if (memcmp(found, expected, sizeof(float) * GROUP * s->view.head_dim) != 0)
        fail_msg("%s: D %u, P %u: position %u changes %s", s->table->name, s->view.head_dim, s->view.page_tokens,
                 position, what);
}

/* Rows [first, first + n) alone, together, and in segments. */
static void check_rows(setting *s, uint32_t first, uint32_t n)
{
    static float solo[HR_ATTENTION_ROWS * ROW], out[HR_ATTENTION_ROWS * ROW];
    size_t floats = hr_attention_state_floats(n * GROUP, s->view.head_dim);
    uint32_t n_segments = (first + n + HR_ATTENTION_SEGMENT - 1) / HR_ATTENTION_SEGMENT;
    hr_attention job = job_of(s, first, n, out);

    for (uint32_t r = 0; r < n; r++) {
        hr_attention one = job_of(s, first + r, 1, solo + (size_t)r * ROW);

        s->table->attention(&one, s->scratch);
        check_against_double(s, first + r, one.out);
    }
    s->table->attention(&job, s->scratch);
    for (uint32_t r = 0; r < n; r++)
        assert_same(s, out + (size_t)r * ROW, solo + (size_t)r * ROW, first + r, "beside other rows");
    if (s->table->attention_segment) {
        float *states = aligned(n_segments * floats * sizeof(float));

        memset(states, 0xFF, n_segments * floats * sizeof(float));
        memset(out, 0, sizeof out);
        for (uint32_t i = n_segments; i-- > 0;)
            s->table->attention_segment(&job, i, s->scratch, states + i * floats);
        s->table->attention_join(&job, states);
        for (uint32_t r = 0; r < n; r++)
            assert_same(s, out + (size_t)r * ROW, solo + (size_t)r * ROW, first + r, "in segments");
        free(states);
    }
}

static void for_each_table(void (*body)(const hr_cpu_kernels *table))
{
    const hr_cpu_kernels *table;
    bool is_usable;

    for (uint32_t i = 0; (table = hr_cpu_kernels_at(i, &is_usable)) != NULL; i++) {
        if (is_usable)
            body(table);
    }
}

static void check_table(const hr_cpu_kernels *table)
{
    static const struct {
        uint32_t d, page_tokens;
        hr_kv_dtype dtype;
    } shapes[] = {{64, 16, HR_KV_BF16}, {64, 16, HR_KV_F32}, {72, 32, HR_KV_BF16}, {5, 8, HR_KV_BF16},
                  {40, 7, HR_KV_BF16},  {24, 64, HR_KV_F32}, {64, 1, HR_KV_BF16}};

    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        setting s = make_setting(table, shapes[i].d, shapes[i].page_tokens, shapes[i].dtype);

        check_rows(&s, 0, 8);
        check_rows(&s, 59, 7);
        check_rows(&s, 508, 8); /* across a segment's border */
        check_rows(&s, 1021, 5);
        check_rows(&s, POSITIONS - 3, 3);
        free_setting(&s);
    }
}

static void long_contexts_are_right_in_any_company(void **state)
{
    (void)state;
    for_each_table(check_table);
}

/* Two rows in one call: the second one's key and value are broken; the first one must not notice. */
static void check_broken(const hr_cpu_kernels *table)
{
    setting s = make_setting(table, 64, 16, HR_KV_BF16);
    float broken[64], out[2][2 * ROW];
    hr_attention job = job_of(&s, 700, 2, out[0]);

    for (uint32_t c = 0; c < 64; c++)
        broken[c] = c % 2 ? NAN : INFINITY;
    table->attention(&job, s.scratch);
    store(&s, 701, broken, broken);
    job.out = out[1];
    table->attention(&job, s.scratch);
    assert_same(&s, out[1], out[0], 700, "with what stands behind its context");
    assert_true(isnan(out[1][ROW]));
    free_setting(&s);
}

static void what_stands_behind_a_context_does_not_count(void **state)
{
    (void)state;
    for_each_table(check_broken);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(long_contexts_are_right_in_any_company),
        cmocka_unit_test(what_stands_behind_a_context_does_not_count),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
