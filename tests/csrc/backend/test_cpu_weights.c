/* Opening the CPU backend on quantised files (cpu_weights.c): what it makes of them, what it gives back, and what it
 * refuses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/cpu/cpu_pack.h"
#include "backend/cpu/cpu_pool.h"
#include "backend/cpu/cpu_weights.h"
#include "csrc/backend/driver.h"
#include "support/recipe.h"

#define GGUF_FOLDER HEADRACE_TEST_DATA "/goldens/gguf/"

static hr_model *open_model(const char *path)
{
    headrace_error err = {0};
    hr_model *model;

    if (hr_model_open(path, &(hr_model_open_options){0}, &model, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    return model;
}

static void check_same_matrix(const hr_matrix *mine, const hr_matrix *source, bool may_pack)
{
    assert_int_equal(mine->rows, source->rows);
    assert_int_equal(mine->cols, source->cols);
    assert_int_equal(mine->is_packed, may_pack && hr_pack_is_packed(source->dtype));
    if (mine->is_packed) {
        size_t bytes = hr_pack_bytes(source->dtype, source->rows, source->cols);
        unsigned char *expected = aligned_alloc(HR_PACK_ALIGNMENT, bytes);
        uint32_t bad_row;

        assert_non_null(expected);
        assert_int_equal(hr_pack_groups(source, 0, (source->rows + 15) / 16, expected, &bad_row, NULL), HEADRACE_OK);
        assert_memory_equal(mine->data, expected, bytes);
        free(expected);
    } else {
        assert_ptr_equal(mine->data, source->data);
    }
}

static void check_same_ffn(const hr_ffn_weights *mine, const hr_ffn_weights *source, bool may_pack)
{
    check_same_matrix(&mine->gate, &source->gate, may_pack);
    check_same_matrix(&mine->up, &source->up, may_pack);
    check_same_matrix(&mine->down, &source->down, may_pack);
}

static void check_table(const hr_model *model, const hr_cpu_weights *weights, bool may_pack)
{
    for (uint32_t i = 0; i < model->arch.n_layers; i++) {
        const hr_layer *mine = &weights->layers[i], *source = &model->layers[i];

        if (source->operator== HR_OPERATOR_CONV) {
            check_same_matrix(&mine->conv.in_proj, &source->conv.in_proj, may_pack);
            check_same_matrix(&mine->conv.out_proj, &source->conv.out_proj, may_pack);
        } else {
            check_same_matrix(&mine->attention.q, &source->attention.q, may_pack);
            check_same_matrix(&mine->attention.k, &source->attention.k, may_pack);
            check_same_matrix(&mine->attention.v, &source->attention.v, may_pack);
            check_same_matrix(&mine->attention.out, &source->attention.out, may_pack);
        }
        if (!source->is_moe)
            check_same_ffn(&mine->dense, &source->dense, may_pack);
        for (uint32_t e = 0; source->is_moe && e < model->arch.n_experts; e++)
            check_same_ffn(&mine->experts[e], &source->experts[e], may_pack);
        if (source->is_moe)
            check_same_matrix(&mine->router, &source->router, false);
        assert_ptr_equal(mine->operator_norm, source->operator_norm);
    }
    check_same_matrix(&weights->head, &model->head, may_pack);
}

static void note_progress(uint64_t done, uint64_t total, void *user)
{
    uint64_t *last = user;

    assert_true(done > last[0] && done <= total && (last[1] == 0 || last[1] == total));
    last[0] = done;
    last[1] = total;
}

static void every_matrix_is_packed_but_routers_and_only_if_quantised(void **state)
{
    static const char *const files[] = {"dense_tiny-q4_0.gguf", "dense_256-q5_k.gguf", "moe_256-q4_k_m.gguf",
                                        "moe_tiny-q4_0.gguf",   "dense_tiny-f16.gguf", "dense_f32-f32.gguf"};

    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        for (int exact = 0; exact < 2; exact++) {
            char path[512];
            uint64_t progress[2] = {0, 0};
            hr_backend_options options = {.exact = exact, .progress = note_progress, .progress_user = progress};
            hr_cpu_pool *pool = hr_cpu_pool_create(2);
            hr_cpu_weights weights;
            hr_model *model;

            (void)snprintf(path, sizeof path, GGUF_FOLDER "%s", files[i]);
            model = open_model(path);
            assert_int_equal(hr_cpu_weights_open(model, &options, pool, &weights, NULL), HEADRACE_OK);
            assert_int_equal(progress[0], progress[1]);
            assert_int_equal(progress[1] > 0, i < 4);
            assert_int_equal(weights.memory_bytes, hr_cpu_weights_bytes(model, &options));
            assert_int_equal(weights.memory_bytes > 0, i < 4 && !exact);
            check_table(model, &weights, !exact);
            hr_cpu_weights_close(&weights);
            hr_cpu_pool_destroy(pool);
            hr_model_close(model);
        }
    }
}

/* What this process holds of the file's pages, as the kernel counts it. A mapping's entry begins with "BEGIN-END " in
 * hexadecimal; of the lines after it, "Rss:" gives KiB. */
static size_t resident_bytes(const hr_model *model)
{
    FILE *maps = fopen("/proc/self/smaps", "r");
    const hr_mapped *mapped = &model->file->mappings[0];
    size_t total = 0;
    bool is_ours = false;
    char line[1024];

    assert_non_null(maps);
    while (fgets(line, sizeof line, maps)) {
        char *end;
        uintptr_t begin = strtoul(line, &end, 16);

        if (*end == '-' && end > line)
            is_ours = begin >= (uintptr_t)mapped->at && begin < (uintptr_t)mapped->at + mapped->len;
        else if (is_ours && strncmp(line, "Rss:", 4) == 0)
            total += strtoul(line + 4, NULL, 10) * 1024;
    }
    (void)fclose(maps);
    return total;
}

static void the_pages_of_packed_matrices_are_given_back_and_come_again(void **state)
{
    hr_model *model = open_model(GGUF_FOLDER "dense_256-q6_k.gguf");
    hr_cpu_pool *pool = hr_cpu_pool_create(2);
    hr_backend_options options = {0};
    hr_cpu_weights weights;
    uint64_t sum[2] = {0, 0};

    (void)state;
    for (size_t i = 0; i < model->file->mappings[0].len; i++)
        sum[0] += model->file->mappings[0].at[i];
    assert_true(resident_bytes(model) > model->file->weight_bytes / 2);
    assert_int_equal(hr_cpu_weights_open(model, &options, pool, &weights, NULL), HEADRACE_OK);
    assert_true(resident_bytes(model) < model->file->weight_bytes / 4);
    for (size_t i = 0; i < model->file->mappings[0].len; i++)
        sum[1] += model->file->mappings[0].at[i];
    assert_true(sum[0] == sum[1]);
    hr_cpu_weights_close(&weights);
    hr_cpu_pool_destroy(pool);
    hr_model_close(model);
}

/* Where the last tensor's entry ends and padding begins. Entries stand one after the other: a name with its length, the
 * rank, the dimensions, the type and the offset. */
static size_t end_of_entries(const hr_tensor_file *file, const char *bytes, size_t len)
{
    size_t first = len, n = 0;

    for (uint32_t i = 0; i < file->n_tensors; i++) {
        const hr_tensor *tensor = &file->tensors[i];
        uint64_t name_len = strlen(tensor->name);
        char name[8 + HR_TENSOR_NAME_MAX];
        const char *found;

        memcpy(name, &name_len, 8);
        memcpy(name + 8, tensor->name, name_len);
        found = memmem(bytes, len, name, 8 + name_len);
        assert_non_null(found);
        first = (size_t)(found - bytes) < first ? (size_t)(found - bytes) : first;
        n += 8 + name_len + 4 + 8 * (size_t)tensor->rank + 4 + 8;
    }
    return first + n;
}

/* The file with alignment 1 and its data at an odd byte: two more keys, the second as long as that needs. *bytes is
 * replaced. */
static void misplace_data(const hr_tensor_file *file, char **bytes, size_t *len)
{
    static const char alignment[] = "\x11\0\0\0\0\0\0\0general.alignment\x04\0\0\0\x01\0\0\0"; /* a U32 */
    size_t entries_end = end_of_entries(file, *bytes, *len), data_at = *len, n = 0;
    uint64_t n_keys, name_len;
    char *out = malloc(*len + 100);

    assert_non_null(out);
    for (uint32_t i = 0; i < file->n_tensors; i++)
        data_at = file->tensors[i].file_offset < data_at ? (size_t)file->tensors[i].file_offset : data_at;
    assert_true(entries_end <= data_at && data_at - entries_end < 32);
    memcpy(out, *bytes, 24);
    memcpy(&n_keys, out + 16, 8);
    n_keys += 2;
    memcpy(out + 16, &n_keys, 8);
    n = 24;
    memcpy(out + n, alignment, sizeof alignment - 1);
    n += sizeof alignment - 1;
    name_len = (n + 8 + 4 + 1 + entries_end - 24) % 2 ? 2 : 1;
    memcpy(out + n, &name_len, 8);
    memset(out + n + 8, 'x', name_len);
    memset(out + n + 8 + name_len, 0, 4 + 1); /* a U8 */
    n += 8 + name_len + 4 + 1;
    memcpy(out + n, *bytes + 24, entries_end - 24);
    n += entries_end - 24;
    assert_int_equal(n % 2, 1);
    memcpy(out + n, *bytes + data_at, *len - data_at);
    *len = n + *len - data_at;
    free(*bytes);
    *bytes = out;
}

/* Copies a file with one scale of one tensor replaced, and all data moved to odd addresses if asked; compares what
 * opening the backend says. */
static void check_refusal_placed(const char *file, const char *tensor_name, uint64_t offset, uint16_t scale, bool exact,
                                 bool at_odd_bytes, const char *expected)
{
    char path[512], folder[128];
    hr_model *model;
    const hr_tensor *tensor;
    hr_backend_options options = {
        .n_threads = 2, .page_tokens = 4, .max_rows = 4, .max_spans = 1, .max_outputs = 1, .max_page_refs = 4};
    hr_backend *backend;
    headrace_error err = {0};
    char *bytes;
    size_t len;

    (void)snprintf(path, sizeof path, GGUF_FOLDER "%s", file);
    bytes = hr_test_read_file(path, &len);
    model = open_model(path);
    tensor = hr_tensor_file_find(model->file, tensor_name);
    assert_non_null(tensor);
    assert_true(offset + 2 <= tensor->n_bytes);
    memcpy(bytes + tensor->file_offset + offset, &scale, sizeof scale);
    if (at_odd_bytes)
        misplace_data(model->file, &bytes, &len);
    hr_model_close(model);
    hr_test_make_folder(folder, sizeof folder);
    hr_test_write_file(folder, "broken.gguf", bytes, len);
    free(bytes);
    (void)snprintf(path, sizeof path, "%s/broken.gguf", folder);
    model = open_model(path);
    options.exact = exact;
    tensor = hr_tensor_file_find(model->file, tensor_name);
    assert_int_equal(tensor->file_offset % 2, at_odd_bytes); /* the golden files' tensors have even offsets */
    assert_int_equal(hr_backend_cpu.open(model, &options, 4, 1, &backend, &err), HEADRACE_E_MODEL);
    assert_null(backend);
    if (!strstr(err.message, expected) || strncmp(err.message, path, strlen(path)) != 0)
        fail_msg("\"%s\" does not say \"%s\" of %s", err.message, expected, path);
    hr_model_close(model);
    hr_test_remove_folder(folder);
}

static void check_refusal(const char *file, const char *tensor_name, uint64_t offset, uint16_t scale, bool exact,
                          const char *expected)
{
    check_refusal_placed(file, tensor_name, offset, scale, exact, false, expected);
}

static void a_scale_that_is_not_finite_is_refused_by_name(void **state)
{
    (void)state;
    for (int exact = 0; exact < 2; exact++) {
        /* rows of 256 values: one block of 144 or 210 bytes */
        check_refusal("dense_256-q4_k.gguf", "blk.1.ffn_down.weight", 35 * 144, 0x7E00, exact,
                      ": tensor 'blk.1.ffn_down.weight': row 35, block 0: a scale of it is not a finite number");
        check_refusal("dense_256-q4_k.gguf", "token_embd.weight", 5 * 144 + 2, 0xFC00, exact,
                      ": tensor 'token_embd.weight': row 5, block 0: ");
        check_refusal("dense_256-q6_k.gguf", "blk.0.shortconv.in_proj.weight", 3 * 210 + 208, 0x7C00, exact,
                      ": tensor 'blk.0.shortconv.in_proj.weight': row 3, block 0: ");
        check_refusal("dense_tiny-q8_0.gguf", "token_embd.weight", 34, 0x7C01, exact,
                      ": tensor 'token_embd.weight': row 0, block 1: ");
    }
}

static void an_expert_s_scale_too(void **state)
{
    const char *name = "blk.2.ffn_up_exps.weight", *file = "moe_tiny-q4_0.gguf";
    hr_model *model = open_model(GGUF_FOLDER "moe_tiny-q4_0.gguf");
    const hr_matrix *expert;

    (void)state;
    assert_true(model->layers[2].is_moe);
    expert = &model->layers[2].experts[3].up;
    check_refusal(file, name, ((size_t)3 * expert->rows + 2) * expert->row_bytes, 0x7FFF, false,
                  ": tensor 'blk.2.ffn_up_exps.weight': expert 3: row 2, block 0: ");
    hr_model_close(model);
}

static void a_scale_at_an_odd_byte_too(void **state)
{
    hr_model *model = open_model(GGUF_FOLDER "moe_tiny-q4_0.gguf");
    const hr_matrix *expert = &model->layers[2].experts[3].up;

    (void)state;
    for (int exact = 0; exact < 2; exact++) {
        check_refusal_placed("dense_tiny-q8_0.gguf", "token_embd.weight", 34, 0x7C01, exact, true,
                             ": tensor 'token_embd.weight': row 0, block 1: ");
        check_refusal_placed("moe_tiny-q4_0.gguf", "blk.2.ffn_up_exps.weight",
                             ((size_t)3 * expert->rows + 2) * expert->row_bytes, 0x7FFF, exact, true,
                             ": tensor 'blk.2.ffn_up_exps.weight': expert 3: row 2, block 0: ");
    }
    hr_model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_matrix_is_packed_but_routers_and_only_if_quantised),
        cmocka_unit_test(the_pages_of_packed_matrices_are_given_back_and_come_again),
        cmocka_unit_test(a_scale_that_is_not_finite_is_refused_by_name),
        cmocka_unit_test(an_expert_s_scale_too),
        cmocka_unit_test(a_scale_at_an_odd_byte_too),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
