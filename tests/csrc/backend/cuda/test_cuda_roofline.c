/* A whole step against the roofline: which kernels it launches, how many, and that they read the model's weights once.
 *
 *   weights  every matrix of every layer that the step touches: all of a dense layer, of a mixture the experts that
 * were chosen; the head if there are outputs; the router once a tile of 8 rows KV       256 bytes a key and key-value
 * head of every generated row and layer; its queries state    a convolution state a sequence and layer; logits: 4 V
 * bytes an output
 *
 * The weights are counted with their padding, which is what the device reads. Kernels are emulated, their copies
 * counted. A launch more or less is a decision: this list has to change with it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "backend/cuda/cuda.h"
#include "csrc/backend/cuda/gpu.h"
#include "csrc/backend/cuda/launches.h"
#include "csrc/backend/random_model.h"

enum { PAGE = 64, MAX_ROWS = 256, SLOTS = 64, PAGES = 512, CONTEXT_PAGES = 4, MOST_LAUNCHES = 64, HEAD = 64 };

typedef struct fixture {
    hr_model *model;
    hr_backend *backend;
    hr_cuda *cuda;
    uint32_t n_rows, n_sequences; /* of the step at hand */
    uint64_t n_keys;              /* that its generated rows attend to */
    uint32_t n_generated;
    uint64_t crowd_bytes; /* further readings of experts that have more rows than a tile */
    bool has_prompt, has_head;
    counted_launch launches[MOST_LAUNCHES];
    uint32_t n_launches, n_checked;
} fixture;

/* A convolution layer with a dense feed-forward, an attention layer with a mixture: the two operators and the two
 * feed-forwards. Even numbers of strips, so that no tile of weights is half empty. */
static random_model_options mixture(void)
{
    random_model_options o = random_model_defaults();

    o.pattern = "ca";
    o.hidden_size = 256;
    o.n_heads = 4;
    o.n_kv_heads = 2;
    o.head_dim = HEAD;
    o.ffn_dim = 384;
    o.vocab_size = 500;
    o.n_experts = 32;
    o.n_experts_used = 4;
    o.expert_ffn_dim = 128;
    o.n_dense_layers = 1;
    o.use_expert_bias = true;
    return o;
}

static random_model_options dense(void)
{
    random_model_options o = mixture();

    o.pattern = "cacca";
    o.n_experts = 0;
    return o;
}

static void set_up(fixture *f, random_model_options o)
{
    hr_backend_options options = {
        .page_tokens = PAGE, .max_rows = MAX_ROWS, .max_spans = SLOTS, .max_outputs = SLOTS, .max_page_refs = PAGES};
    headrace_error err = {0};

    *f = (fixture){.model = random_model_create(&o)};
    gpu_be(GPU_FUSED);
    if (hr_backend_cuda.open(f->model, &options, PAGES, SLOTS, &f->backend, &err) != HEADRACE_OK)
        fail_msg("opening the backend: %s", err.message);
    f->cuda = (hr_cuda *)f->backend;
    assert_true(f->cuda->fuses_conv && f->cuda->fuses_qkv && f->cuda->fuses_attention);
}

static void tear_down(fixture *f)
{
    hr_backend_cuda.close(f->backend);
    random_model_destroy(f->model);
    gpu_check_clean();
}

/* ---------------------------------------------------------------- steps */

static void add_span(fixture *f, hr_batch *batch, uint32_t start, uint32_t n, bool is_prompt)
{
    static const hr_sampling_params greedy = {.top_p = 1, .repetition_penalty = 1};
    uint32_t slot = batch->n_spans;

    batch->spans[batch->n_spans++] = (hr_span){.first_row = batch->n_rows,
                                               .n_rows = n,
                                               .start_position = start,
                                               .page_first = batch->n_page_refs,
                                               .n_pages = (start + n + PAGE - 1) / PAGE,
                                               .state_slot = slot,
                                               .sequence = slot + 1,
                                               .n_prompt = is_prompt ? start + n : start,
                                               .is_fresh = start == 0};
    for (uint32_t i = 0; i < (start + n + PAGE - 1) / PAGE; i++)
        batch->pages[batch->n_page_refs++] = slot * CONTEXT_PAGES + i;
    for (uint32_t i = 0; i < n; i++, batch->n_rows++)
        batch->token_ids[batch->n_rows] = (int32_t)((batch->n_rows * 37 + 5) % f->model->arch.vocab_size);
    if (!is_prompt) {
        f->n_keys += start + 1;
        f->n_generated++;
    }
    if (f->has_head)
        batch->outputs[batch->n_outputs++] =
            (hr_output){.row = batch->n_rows - 1, .sampling = &greedy, .n_logprobs = -1, .score_id = -1};
}

/* n streams, each at a context of its own (pages hold zeros: no count depends on what is in them), and n_prompt rows of
 * a prompt after them. */
static void run_step(fixture *f, uint32_t n_streams, uint32_t n_prompt, bool has_head)
{
    hr_batch *batch = hr_backend_cuda.batch(f->backend, 0);
    headrace_error err = {0};

    batch->n_rows = batch->n_spans = batch->n_outputs = batch->n_page_refs = 0;
    f->n_keys = f->crowd_bytes = f->n_generated = f->n_checked = 0;
    f->has_prompt = n_prompt > 0;
    f->has_head = has_head;
    for (uint32_t i = 0; i < n_streams; i++)
        add_span(f, batch, 1 + i * 53 % 200, 1, false);
    if (n_prompt > 0)
        add_span(f, batch, 0, n_prompt, true);
    f->n_rows = batch->n_rows;
    f->n_sequences = batch->n_spans;
    launches_clear();
    if (hr_backend_cuda.step_begin(f->backend, batch, &err) != HEADRACE_OK ||
        hr_backend_cuda.step_wait(f->backend, &err) != HEADRACE_OK)
        fail_msg("step: %s", err.message);
    f->n_launches = launches_take(f->launches, MOST_LAUNCHES);
    assert_in_range(f->n_launches, 1, MOST_LAUNCHES);
}

/* ---------------------------------------------------------------- the list */

/* The next launch of the step is this kernel, and moved so much. */
static const counted_launch *next(fixture *f, const char *kernel, uint64_t bulk_bytes, uint64_t written)
{
    const counted_launch *is = &f->launches[f->n_checked];

    if (f->n_checked == f->n_launches)
        fail_msg("the step ends after %u launches, without %s", f->n_launches, kernel);
    if (strcmp(is->kernel, kernel) != 0)
        fail_msg("launch %u is %s instead of %s", f->n_checked, is->kernel, kernel);
    if (is->bulk_bytes != bulk_bytes)
        fail_msg("launch %u, %s, %u rows: %llu bytes by bulk_load; the formula says %llu", f->n_checked, kernel,
                 f->n_rows, (unsigned long long)is->bulk_bytes, (unsigned long long)bulk_bytes);
    if (launches_count_writes() && is->written_bytes != written)
        fail_msg("launch %u, %s, %u rows: %llu bytes written; the formula says %llu", f->n_checked, kernel, f->n_rows,
                 (unsigned long long)is->written_bytes, (unsigned long long)written);
    if (is->is_programmatic != (f->n_checked > 0)) /* the first waits for the upload, all others begin early */
        fail_msg("launch %u, %s, is %sprogrammatic", f->n_checked, kernel, is->is_programmatic ? "" : "not ");
    f->n_checked++;
    return is;
}

static uint64_t matrix_bytes(const hrk_matrix *m)
{
    return sizeof(hrk_bf16) * hrk_matrix_values(m->rows, m->cols, m->n_groups, m->layout);
}
/* Readings of a product's weights: one for every tile of tokens, where neighbours share `overlap` rows. */
static uint64_t passes(const fixture *f, uint32_t n, uint32_t overlap)
{
    uint32_t tile = f->launches[f->n_checked].tile;

    if (tile == 0 || n == 0)
        return 0;
    return n <= tile ? 1 : 1 + (n - overlap - 1) / (tile - overlap);
}

/* A product of the step's rows (or outputs), which must read its weights once when the step only generates. */
static uint64_t next_product(fixture *f, const char *kernel, const hrk_matrix *m, uint32_t n, uint32_t overlap,
                             uint64_t written)
{
    uint64_t times = passes(f, n, overlap), bytes = times * matrix_bytes(m);

    if (!f->has_prompt)
        assert_int_equal(times, 1);
    (void)next(f, kernel, bytes, written);
    return bytes;
}

/* A product of a mixture: the experts' own rows. `first` is hrk_routing's, as the step left it. */
static uint64_t next_expert_product(fixture *f, const char *kernel, const hrk_matrix *m, const uint32_t *first,
                                    uint64_t written)
{
    uint64_t bytes = 0;

    for (uint32_t e = 0; e < m->n_stack; e++) {
        uint64_t times = passes(f, first[e + 1] - first[e], 0);

        bytes += times * matrix_bytes(m);
        f->crowd_bytes += times > 1 ? (times - 1) * matrix_bytes(m) : 0;
    }
    (void)next(f, kernel, bytes, written);
    return bytes;
}

static uint64_t row_bytes(const fixture *f, uint32_t cols)
{
    return (uint64_t)f->n_rows * hrk_ld(cols) * sizeof(hrk_bf16);
}

static uint64_t check_operator(fixture *f, const hr_cuda_layer *layer)
{
    const hr_arch *arch = f->cuda->arch;
    uint32_t H = arch->hidden_size, q_cols = arch->n_heads * HEAD, kv_cols = arch->n_kv_heads * HEAD;
    uint64_t weights;

    if (layer->source->operator== HR_OPERATOR_CONV) {
        uint64_t state = (uint64_t)f->n_sequences * (arch->conv_length - 1) * H * sizeof(hrk_bf16);

        weights =
            next_product(f, "conv_in_kernel", &layer->in, f->n_rows, arch->conv_length - 1, row_bytes(f, H) + state);
    } else {
        uint64_t keys = f->n_keys * arch->n_kv_heads * 2 * HEAD * sizeof(hrk_bf16);
        uint64_t queries = (uint64_t)f->n_generated * q_cols * sizeof(hrk_bf16);

        weights =
            next_product(f, "qkv_kernel", &layer->in, f->n_rows, 0, row_bytes(f, q_cols) + 2 * row_bytes(f, kv_cols));
        (void)next(f, "attention_decode", keys + queries, queries);
        if (f->has_prompt) {
            const counted_launch *is = &f->launches[f->n_checked];

            /* Every tile reads what is before it: test_attention.cc has the formula. */
            (void)next(f, "attention_prefill", is->bulk_bytes, is->written_bytes);
        }
    }
    return weights + next_product(f, "linear_kernel", &layer->out, f->n_rows, 0, row_bytes(f, H));
}

/* A tile of rows reads the whole router. So, in this narrow a model, does a tile that turns out to be empty: its block
 * asks for the first stages before it knows. A graph has as many tiles as its class of steps may need: the next power
 * of two of rows, with a prompt at least 64. */
static uint64_t router_bytes(const fixture *f, uint32_t tile)
{
    const hr_arch *arch = f->cuda->arch;
    uint32_t bound = f->has_prompt ? 64 : 1;

    while (bound < f->n_rows)
        bound *= 2;
    return (uint64_t)(bound + tile - 1) / tile * arch->n_experts * hrk_ld(arch->hidden_size) * sizeof(hrk_bf16);
}

static uint64_t check_feed_forward(fixture *f, const hr_cuda_layer *layer, bool is_last)
{
    const hr_arch *arch = f->cuda->arch;
    uint64_t rows = row_bytes(f, arch->hidden_size), weights, router, K = arch->n_experts_used;

    if (!layer->source->is_moe) {
        (void)next(f, "norm_kernel", 0, rows);
        weights = next_product(f, "gate_up_kernel", &layer->gate_up, f->n_rows, 0, row_bytes(f, layer->gate_up.rows));
        weights += next_product(f, "linear_kernel", &layer->down, f->n_rows, 0, rows);
        if (!is_last)
            (void)next(f, "norm_kernel", 0, rows);
        return weights;
    }
    router = router_bytes(f, f->launches[f->n_checked].tile);
    if (f->launches[f->n_checked].async_bytes != router)
        fail_msg("the router of %u rows: %llu bytes; the formula says %llu", f->n_rows,
                 (unsigned long long)f->launches[f->n_checked].async_bytes, (unsigned long long)router);
    (void)next(f, "route_kernel", 0, f->launches[f->n_checked].written_bytes); /* what it writes: test_rows.cc */
    weights = next_expert_product(f, "gate_up_kernel", &layer->gate_up, f->cuda->routing.first,
                                  K * row_bytes(f, layer->gate_up.rows));
    weights += next_expert_product(f, "linear_kernel", &layer->down, f->cuda->routing.first, K * rows);
    (void)next(f, "combine_kernel", 0, is_last ? rows : 2 * rows);
    return weights;
}

/* Holds every launch of the step to its place and count; returns the bytes of weights that all of them read, the
 * router's apart. */
static uint64_t check_launches(fixture *f)
{
    hr_cuda *cuda = f->cuda;
    uint32_t H = cuda->arch->hidden_size, n = f->n_sequences;
    uint64_t weights = 0;

    (void)next(f, "step_begin_kernel", 0, f->launches[0].written_bytes); /* tables as they changed */
    for (uint32_t i = 0; i < cuda->arch->n_layers; i++) {
        weights += check_operator(f, &cuda->layers[i]);
        weights += check_feed_forward(f, &cuda->layers[i], i + 1 == cuda->arch->n_layers);
    }
    if (f->has_head) {
        (void)next(f, "norm_kernel", 0, (uint64_t)n * hrk_ld(H) * sizeof(hrk_bf16));
        weights +=
            next_product(f, "linear_kernel", &cuda->head, n, 0, (uint64_t)n * hrk_ld(cuda->head.rows) * sizeof(float));
        (void)next(f, "sampler_kernel", 0, f->launches[f->n_checked].written_bytes);
    }
    if (f->n_checked != f->n_launches)
        fail_msg("%u launches, the first too many is %s", f->n_launches, f->launches[f->n_checked].kernel);
    return weights;
}

/* ---------------------------------------------------------------- the formula */

/* The weights that the step touches, from the model's shape and the experts that were chosen. */
static uint64_t touched_weights(const fixture *f)
{
    const hr_arch *arch = f->cuda->arch;
    uint64_t H = hrk_ld(arch->hidden_size), q = (uint64_t)arch->n_heads * HEAD, kv = (uint64_t)arch->n_kv_heads * HEAD;
    uint64_t values = f->has_head ? hrk_ld(arch->vocab_size) * H : 0, touched = 0;

    for (uint32_t e = 0; e < arch->n_experts; e++)
        touched += f->cuda->routing.first[e + 1] > f->cuda->routing.first[e];
    for (uint32_t i = 0; i < arch->n_layers; i++) {
        const hr_layer *layer = &f->model->layers[i];

        values += layer->operator== HR_OPERATOR_CONV ? 4 * H * H : (q + 2 * kv) * H + H * q;
        values += 3 * H * (layer->is_moe ? touched * hrk_ld(arch->expert_ffn_dim) : hrk_ld(arch->ffn_dim));
    }
    return sizeof(hrk_bf16) * values;
}

static void check_decode(random_model_options o, uint32_t n_streams)
{
    fixture f;
    uint64_t weights;

    set_up(&f, o);
    for (uint32_t again = 0; again < 2; again++) { /* the second has nothing to describe to the device */
        run_step(&f, n_streams, 0, true);
        weights = check_launches(&f);
        if (n_streams <= 16)
            assert_int_equal(f.crowd_bytes, 0);
        if (weights != touched_weights(&f) + f.crowd_bytes)
            fail_msg("%u streams: %llu bytes of weights; the roofline says %llu", n_streams,
                     (unsigned long long)weights, (unsigned long long)(touched_weights(&f) + f.crowd_bytes));
    }
    tear_down(&f);
}

static void a_step_that_generates_reads_each_weight_once(void **state)
{
    static const uint32_t streams[] = {1, 8, 40};

    (void)state;
    for (size_t i = 0; i < sizeof streams / sizeof *streams; i++) {
        check_decode(dense(), streams[i]);
        check_decode(mixture(), streams[i]);
    }
}

/* Prompts read their weights once a tile of tokens, generated rows beside them for nothing; a step that ends no prompt
 * has no head. */
static void a_step_with_a_prompt_launches_its_attention_too(void **state)
{
    fixture f;

    (void)state;
    for (uint32_t i = 0; i < 2; i++) {
        set_up(&f, i == 0 ? dense() : mixture());
        run_step(&f, 0, 130, true);
        (void)check_launches(&f);
        run_step(&f, 5, 60, true);
        (void)check_launches(&f);
        run_step(&f, 0, 64, false);
        (void)check_launches(&f);
        tear_down(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_step_that_generates_reads_each_weight_once),
        cmocka_unit_test(a_step_with_a_prompt_launches_its_attention_too),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
