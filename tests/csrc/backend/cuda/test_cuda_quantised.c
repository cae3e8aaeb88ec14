/* Quantised weights on the CUDA backend, kernels emulated: kept as they are, or decoded to bf16 as they are loaded,
 * they give the same logits, bit for bit, in any cut of a prompt; kept they are smaller; a scale that is not finite is
 * refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "csrc/backend/cuda/gpu.h"
#include "csrc/backend/driver.h"
#include "csrc/backend/random_model.h"

#include "backend/cuda/cuda.h"
#include "format/quantize.h"

enum { N = 24 };

/* Heads of 64, as every published model has: all fused kernels apply. */
static random_model_options mixture(void)
{
    random_model_options o = random_model_defaults();

    o.pattern = "cac";
    o.hidden_size = 256;
    o.n_heads = 4;
    o.n_kv_heads = 2;
    o.head_dim = 64;
    o.ffn_dim = 512;
    o.vocab_size = 200;
    o.n_experts = 8;
    o.n_experts_used = 2;
    o.expert_ffn_dim = 256;
    o.n_dense_layers = 1;
    o.use_expert_bias = true;
    o.dtype = HR_F32;
    o.seed = 5;
    return o;
}

/* Heads and taps that the fused operators do not take, columns that only blocks of 32 divide. */
static random_model_options unfused(void)
{
    random_model_options o = mixture();

    o.hidden_size = 192;
    o.conv_length = 5;
    o.n_heads = 4;
    o.n_kv_heads = 2;
    o.head_dim = 32;
    o.ffn_dim = 160;
    o.n_experts = 0;
    return o;
}

static void quantise(hr_model *model, hr_matrix *matrix, hr_dtype dtype)
{
    size_t row_bytes = hr_dtype_row_bytes(dtype, matrix->cols);
    unsigned char *to = hr_arena_calloc(&model->arena, matrix->rows, row_bytes);

    assert_non_null(to);
    assert_int_equal(matrix->dtype, HR_F32);
    for (uint32_t r = 0; r < matrix->rows; r++) {
        const float *row = (const float *)matrix->data + (size_t)r * matrix->cols;

        assert_int_equal(hr_quantize_row(dtype, row, NULL, matrix->cols, to + r * row_bytes), matrix->cols);
    }
    *matrix =
        (hr_matrix){.data = to, .dtype = dtype, .rows = matrix->rows, .cols = matrix->cols, .row_bytes = row_bytes};
}

static void quantise_ffn(hr_model *model, const hr_ffn_weights *from, hr_dtype gate, hr_dtype up, hr_dtype down)
{
    hr_ffn_weights *w = (hr_ffn_weights *)(uintptr_t)from; /* made by the test, not const */

    quantise(model, &w->gate, gate);
    quantise(model, &w->up, up);
    quantise(model, &w->down, down);
}

/* As llama.cpp's mixes: most matrices of one type, values, down and the head of a better one. up: another type for the
 * `up` of dense layers, which then cannot lie beside `gate`. */
static hr_model *quantised_model(const random_model_options *o, hr_dtype most, hr_dtype better, hr_dtype up)
{
    hr_model *model = random_model_create(o);

    quantise(model, &model->embedding, better);
    model->head = model->embedding;
    for (uint32_t i = 0; i < model->arch.n_layers; i++) {
        hr_layer *layer = &model->layers[i];

        if (layer->operator== HR_OPERATOR_CONV) {
            quantise(model, &layer->conv.in_proj, most);
            quantise(model, &layer->conv.out_proj, most);
        } else {
            quantise(model, &layer->attention.q, most);
            quantise(model, &layer->attention.k, most);
            quantise(model, &layer->attention.v, better);
            quantise(model, &layer->attention.out, most);
        }
        if (!layer->is_moe)
            quantise_ffn(model, &layer->dense, most, up, better);
        for (uint32_t e = 0; layer->is_moe && e < model->arch.n_experts; e++)
            quantise_ffn(model, &layer->experts[e], most, most, better);
    }
    return model;
}

/* Logits [N, V] of a prompt in chunks; *weights: bytes of them on the device. */
static float *run(const hr_model *model, bool keeps, uint32_t chunk, size_t *weights)
{
    float *logits = calloc((size_t)N * model->arch.vocab_size, sizeof *logits);
    int32_t ids[N];
    driver_sequence sequence;
    driver d;

    assert_non_null(logits);
    gpu_be(GPU_FUSED);
    if (keeps)
        assert_int_equal(unsetenv("HEADRACE_CUDA_QUANTISED"), 0);
    else
        assert_int_equal(setenv("HEADRACE_CUDA_QUANTISED", "0", 1), 0);
    driver_random_ids(model, 3, N, ids);
    driver_open(&d, model, &(driver_options){.ops = &hr_backend_cuda, .page_tokens = 8});
    *weights = ((hr_cuda *)(void *)d.backend)->weight_bytes;
    sequence = driver_new_sequence(&d, ids, N);
    driver_run(&d, &sequence, 0, N, chunk, logits);
    driver_close(&d);
    assert_int_equal(unsetenv("HEADRACE_CUDA_QUANTISED"), 0);
    gpu_check_clean();
    return logits;
}

/* largest: what the kept weights may take, in hundredths of the decoded ones, whose run takes the
 * prompt at once; chunk: rows a step of theirs, 0 all. */
static void check(const random_model_options *o, hr_dtype most, hr_dtype better, hr_dtype up, uint32_t largest,
                  uint32_t chunk)
{
    hr_model *model = quantised_model(o, most, better, up);
    size_t n = (size_t)N * model->arch.vocab_size * sizeof(float), kept, decoded;
    float *want = run(model, false, 0, &decoded), *got = run(model, true, chunk, &kept);

    assert_memory_equal(got, want, n);
    assert_true(want[0] == want[0] && want[0] != want[1]);
    if (kept * 100 > decoded * largest)
        fail_msg("weights of %zu bytes, decoded %zu", kept, decoded);
    free(want);
    free(got);
    random_model_destroy(model);
}

/* The embedding for look-ups, norms and the angles' table are not quantised in either. */
static void every_format_gives_the_logits_of_its_decoded_weights(void **state)
{
    random_model_options o = mixture();

    (void)state;
    check(&o, HR_Q4_K, HR_Q6_K, HR_Q4_K, 50, 9);
    check(&o, HR_Q5_K, HR_Q8_0, HR_Q5_K, 55, 0);
    check(&o, HR_Q4_0, HR_Q4_0, HR_Q4_0, 45, 17);
}

static void formats_that_cannot_lie_together_are_decoded(void **state)
{
    random_model_options o = mixture();

    (void)state;
    check(&o, HR_Q4_K, HR_Q6_K, HR_Q5_K, 80, 0); /* gate and up of the dense layer */
    check(&o, HR_Q5_0, HR_Q6_K, HR_Q4_1, 90, 0); /* formats without kernels */
}

static void unfused_operators_take_quantised_weights(void **state)
{
    random_model_options o = unfused();

    (void)state;
    check(&o, HR_Q8_0, HR_Q8_0, HR_Q8_0, 70, 0);
    check(&o, HR_Q4_0, HR_Q8_0, HR_Q4_0, 75, 9); /* q and k beside v: decoded */
}

static void real_files_give_the_logits_of_their_decoded_weights(void **state)
{
    static const char *const names[] = {"dense_256-q5_k", "moe_256-q4_k_m", "moe_tiny-q4_0", "dense_tiny-q8_0"};

    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        headrace_error err = {0};
        hr_model *model = NULL;
        size_t kept, decoded;
        float *got, *want;
        char path[512];

        (void)snprintf(path, sizeof path, "%s/goldens/gguf/%s.gguf", HEADRACE_TEST_DATA, names[i]);
        if (hr_model_open(path, &(hr_model_open_options){0}, &model, &err) != HEADRACE_OK)
            fail_msg("%s: %s", path, err.message);
        got = run(model, true, 7, &kept);
        want = run(model, false, 0, &decoded);
        assert_memory_equal(got, want, (size_t)N * model->arch.vocab_size * sizeof *got);
        assert_true(kept < decoded);
        free(got);
        free(want);
        hr_model_close(model);
    }
}

static headrace_status open_on_gpu(const hr_model *model, headrace_error *err)
{
    hr_backend_options options = {
        .page_tokens = 8, .max_rows = 16, .max_spans = 4, .max_outputs = 4, .max_page_refs = 64};
    hr_backend *backend = NULL;
    headrace_status status = hr_backend_cuda.open(model, &options, 16, 4, &backend, err);

    assert_null(backend);
    return status;
}

/* A copy of a file with one byte changed. */
static void copy_with_byte(const char *from, uint64_t at, unsigned char value, const char *to)
{
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    uint64_t i = 0;

    assert_true(in && out);
    for (int c = getc(in); c != EOF; c = getc(in), i++)
        assert_int_not_equal(putc(i == at ? value : c, out), EOF);
    assert_true(i > at);
    (void)fclose(in);
    assert_int_equal(fclose(out), 0);
}

static void a_bad_scale_is_refused_by_the_tensors_name(void **state)
{
    const char *path = HEADRACE_TEST_DATA "/goldens/gguf/dense_256-q6_k.gguf", *name = "blk.1.ffn_down.weight";
    const char *bad = HEADRACE_BUILD_DIR "/bad_scale.gguf";
    headrace_error err = {0};
    hr_model *model = NULL;
    const hr_tensor *tensor;
    uint64_t scale;

    (void)state;
    assert_int_equal(hr_model_open(path, &(hr_model_open_options){0}, &model, &err), HEADRACE_OK);
    tensor = hr_tensor_file_find(model->file, name);
    assert_true(tensor && tensor->dtype == HR_Q6_K);
    scale = tensor->file_offset + 5 * hr_dtype_row_bytes(HR_Q6_K, tensor->shape[1]) + 209; /* sign and exponent */
    hr_model_close(model);
    copy_with_byte(path, scale, 0x7E, bad); /* NaN */
    assert_int_equal(hr_model_open(bad, &(hr_model_open_options){0}, &model, &err), HEADRACE_OK);
    gpu_be(GPU_FUSED);
    assert_int_equal(open_on_gpu(model, &err), HEADRACE_E_MODEL);
    assert_non_null(strstr(err.message, "bad_scale.gguf: tensor 'blk.1.ffn_down.weight': row 5, block 0"));
    gpu_check_clean();
    hr_model_close(model);
    (void)remove(bad);
}

static void a_scale_that_is_not_finite_is_refused(void **state)
{
    random_model_options o = mixture();
    hr_model *model = quantised_model(&o, HR_Q4_K, HR_Q6_K, HR_Q4_K);
    const hr_matrix *down = &model->layers[1].experts[3].down;
    unsigned char *scale = (unsigned char *)(uintptr_t)down->data + 17 * down->row_bytes + 208;
    headrace_error err = {0};

    (void)state;
    scale[0] = 0;
    scale[1] = 0x7C; /* infinity */
    for (int kind = GPU_PORTABLE; kind <= GPU_FUSED; kind++) {
        gpu_be(kind);
        assert_int_equal(open_on_gpu(model, &err), HEADRACE_E_MODEL);
        assert_non_null(strstr(err.message, "layer 1"));
        assert_non_null(strstr(err.message, "row 17, block 0"));
        gpu_check_clean();
    }
    random_model_destroy(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_format_gives_the_logits_of_its_decoded_weights),
        cmocka_unit_test(formats_that_cannot_lie_together_are_decoded),
        cmocka_unit_test(unfused_operators_take_quantised_weights),
        cmocka_unit_test(real_files_give_the_logits_of_their_decoded_weights),
        cmocka_unit_test(a_bad_scale_is_refused_by_the_tensors_name),
        cmocka_unit_test(a_scale_that_is_not_finite_is_refused),
    };

    /* Steps are few, recording graphs for all classes of them is not. */
    if (setenv("HEADRACE_CUDA_GRAPHS", "0", 1) != 0)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
