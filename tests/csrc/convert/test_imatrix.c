/* Importance matrices: files made by the gguf package (tests/data/imatrix), our own read back, and broken ones. */
#include "convert/imatrix.h"
#include "support/recipe.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define DATA HEADRACE_TEST_DATA "/imatrix/"

/* In the order of expected.bin. */
static const struct {
    const char *name;
    uint32_t n_experts, n_columns;
} tensors[] = {{"blk.0.shortconv.in_proj.weight", 1, 12},
               {"blk.0.shortconv.out_proj.weight", 1, 4},
               {"blk.1.attn_q.weight", 1, 4},
               {"blk.2.ffn_down_exps.weight", 4, 6},
               {"blk.3.ffn_up_exps.weight", 2, 3}};
enum { N_TENSORS = sizeof tensors / sizeof *tensors };

static void assert_close(const float *found, const float *expected, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(found[i] - expected[i]) <= 2e-6F * fabsf(expected[i])))
            fail_msg("%s: value %zu: expected %g, found %g", name, i, (double)expected[i], (double)found[i]);
}

static hr_imatrix open_or_fail(const char *path)
{
    hr_imatrix out;
    headrace_error err;

    if (hr_imatrix_open(path, &out, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    return out;
}

static void a_gguf_file_gives_each_column_its_mean_square(void **state)
{
    hr_imatrix imatrix = open_or_fail(DATA "small.gguf");
    size_t len, at = 0;
    char *file = hr_test_read_file(DATA "expected.bin", &len);
    const float *expected = (const float *)(void *)file, *found;

    (void)state;
    assert_int_equal(imatrix.n_entries, N_TENSORS);
    assert_int_equal(imatrix.chunk_count, 4);
    assert_int_equal(imatrix.chunk_size, 512);
    assert_int_equal(imatrix.n_datasets, 2);
    assert_string_equal(imatrix.datasets[1], "second text.txt");
    for (size_t i = 0; i < N_TENSORS; i++) {
        size_t n = (size_t)tensors[i].n_experts * tensors[i].n_columns;

        assert_int_equal(
            hr_imatrix_find(&imatrix, tensors[i].name, tensors[i].n_experts, tensors[i].n_columns, &found, NULL), 0);
        assert_non_null(found);
        assert_close(found, expected + at, n, tensors[i].name);
        at += n;
    }
    assert_int_equal(len, at * sizeof(float));
    free(file);
    hr_imatrix_close(&imatrix);
}

static void experts_that_few_rows_reached_are_counted(void **state)
{
    hr_imatrix imatrix = open_or_fail(DATA "small.gguf");

    (void)state;
    assert_string_equal(imatrix.entries[3].name, "blk.2.ffn_down_exps.weight");
    assert_int_equal(imatrix.entries[3].n_unseen, 1);
    assert_int_equal(imatrix.entries[3].n_rare, 1);
    assert_int_equal(imatrix.entries[4].n_unseen, 2);
    assert_int_equal(imatrix.entries[0].n_unseen, 0);
    hr_imatrix_close(&imatrix);
}

static void a_column_silent_in_few_rows_still_counts(void **state)
{
    hr_imatrix imatrix = open_or_fail(DATA "small.gguf");
    const float *found;

    (void)state;
    assert_int_equal(hr_imatrix_find(&imatrix, "blk.2.ffn_down_exps.weight", 4, 6, &found, NULL), 0);
    assert_true(found[2 * 6 + 1] > 0.0F);
    hr_imatrix_close(&imatrix);
}

/* The older form holds sums / rows x calls, and ones for an expert that no row reached. */
static void the_older_form_gives_the_plain_means(void **state)
{
    hr_imatrix old = open_or_fail(DATA "small.dat"), gguf = open_or_fail(DATA "small.gguf");
    const float *found, *expected;

    (void)state;
    assert_int_equal(old.n_entries, N_TENSORS);
    assert_int_equal(old.chunk_count, 4);
    assert_int_equal(old.n_datasets, 1);
    assert_string_equal(old.datasets[0], "first.txt");
    for (size_t i = 0; i < 3; i++) { /* dense ones: the same in both forms */
        assert_int_equal(hr_imatrix_find(&old, tensors[i].name, 1, tensors[i].n_columns, &found, NULL), 0);
        assert_int_equal(hr_imatrix_find(&gguf, tensors[i].name, 1, tensors[i].n_columns, &expected, NULL), 0);
        assert_close(found, expected, tensors[i].n_columns, tensors[i].name);
    }
    assert_int_equal(hr_imatrix_find(&old, "blk.2.ffn_down_exps.weight", 4, 6, &found, NULL), 0);
    for (size_t i = 0; i < 6; i++)
        assert_true(found[6 + i] == 1.0F);
    hr_imatrix_close(&old);
    hr_imatrix_close(&gguf);
}

static void a_weight_of_another_shape_is_refused_by_name(void **state)
{
    hr_imatrix imatrix = open_or_fail(DATA "small.gguf");
    headrace_error err;
    const float *found;

    (void)state;
    assert_int_equal(hr_imatrix_find(&imatrix, "blk.0.shortconv.in_proj.weight", 1, 13, &found, &err),
                     HEADRACE_E_MODEL);
    assert_non_null(strstr(err.message, "blk.0.shortconv.in_proj.weight"));
    assert_non_null(strstr(err.message, "12 columns"));
    assert_int_equal(hr_imatrix_find(&imatrix, "blk.2.ffn_down_exps.weight", 6, 4, &found, &err), HEADRACE_E_MODEL);
    assert_int_equal(hr_imatrix_find(&imatrix, "blk.2.ffn_down_exps.weight", 0, 0, &found, &err), HEADRACE_E_MODEL);
    assert_int_equal(hr_imatrix_find(&imatrix, "output.weight", 1, 12, &found, &err), HEADRACE_OK);
    assert_null(found);
    hr_imatrix_close(&imatrix);
}

/* ---------------------------------------------------------------- writing */

static const double dense[3] = {30.0, 0.0, 6.0}, experts[6] = {640.0, 1280.0, 640.0, 0.0, 0.0, 0.0};
static const uint64_t dense_rows[1] = {3}, expert_rows[2] = {640, 0};
static const hr_imatrix_sums written[] = {
    {.name = "blk.1.ffn_up_exps.weight", .n_experts = 2, .n_columns = 3, .sums = experts, .rows = expert_rows},
    {.name = "blk.0.attn_k.weight", .n_experts = 1, .n_columns = 3, .sums = dense, .rows = dense_rows}};
static const char *const texts[] = {"a text.txt"};
static const hr_imatrix_source source = {.datasets = texts, .n_datasets = 1, .chunk_count = 7, .chunk_size = 256};

static void what_is_written_is_read_back(void **state)
{
    static const float expected[2][3] = {{10.0F, 0.0F, 2.0F}, {1.0F, 2.0F, 1.0F}};
    char folder[128], path[160];
    const float *found;

    (void)state;
    hr_test_make_folder(folder, sizeof folder);
    (void)snprintf(path, sizeof path, "%s/imatrix.gguf", folder);
    hr_test_write_file(folder, "imatrix.gguf", "old", 3);
    assert_int_equal(hr_imatrix_write(path, written, 2, &source, NULL), HEADRACE_OK);
    hr_imatrix imatrix = open_or_fail(path);

    assert_int_equal(imatrix.n_entries, 2);
    assert_int_equal(imatrix.chunk_count, 7);
    assert_int_equal(imatrix.chunk_size, 256);
    assert_int_equal(imatrix.n_datasets, 1);
    assert_string_equal(imatrix.datasets[0], texts[0]);
    assert_int_equal(hr_imatrix_find(&imatrix, "blk.0.attn_k.weight", 1, 3, &found, NULL), HEADRACE_OK);
    assert_close(found, expected[0], 3, "dense");
    assert_int_equal(hr_imatrix_find(&imatrix, "blk.1.ffn_up_exps.weight", 2, 3, &found, NULL), HEADRACE_OK);
    assert_close(found, expected[1], 3, "the expert with rows");
    assert_close(found + 3, expected[1], 3, "the expert without");
    hr_imatrix_close(&imatrix);
    hr_test_remove_folder(folder);
}

static void refuse_to_write(const hr_imatrix_sums *sums, size_t n, const char *said)
{
    char folder[128], path[160];
    headrace_error err;
    FILE *file;

    hr_test_make_folder(folder, sizeof folder);
    (void)snprintf(path, sizeof path, "%s/imatrix.gguf", folder);
    assert_int_equal(hr_imatrix_write(path, sums, n, &source, &err), HEADRACE_E_ARGUMENT);
    assert_non_null(strstr(err.message, said));
    file = fopen(path, "rb");
    assert_null(file);
    hr_test_remove_folder(folder);
}

static void sums_that_make_no_sense_are_not_written(void **state)
{
    hr_imatrix_sums twice[2] = {written[1], written[1]}, wrong = written[1];
    const double not_finite[3] = {1.0, (double)NAN, 1.0}, negative[3] = {1.0, 2.0, -1.0}, large[3] = {1.0, 1e39, 1.0};

    (void)state;
    refuse_to_write(twice, 2, "given twice");
    refuse_to_write(twice, 0, "no tensor");
    wrong.sums = not_finite;
    refuse_to_write(&wrong, 1, "column 1");
    wrong.sums = negative;
    refuse_to_write(&wrong, 1, "column 2");
    wrong.sums = large;
    refuse_to_write(&wrong, 1, "column 1");
    wrong = written[1];
    wrong.name = "a.name.that.is.longer.than.llama.cpp.can.read.in.a.gguf.file";
    refuse_to_write(&wrong, 1, "expected 1 to 55");
}

/* ---------------------------------------------------------------- bad files */

static void expect_refusal(const void *bytes, size_t len, const char *said)
{
    hr_imatrix out;
    headrace_error err;

    assert_int_equal(hr_imatrix_parse(bytes, len, "bad.file", &out, &err), HEADRACE_E_MODEL);
    if (!strstr(err.message, said) || !strstr(err.message, "bad.file"))
        fail_msg("expected '%s' in: %s", said, err.message);
}

/* Every prefix is a truncated file; the heap copy ends where the prefix does, for the sanitizer to see. The older form
 * has one prefix that is whole: without chunks and text, as very old files are. */
static void every_truncation_is_refused(void **state)
{
    static const char *const names[] = {DATA "small.gguf", DATA "small.dat"};

    (void)state;
    for (size_t k = 0; k < 2; k++) {
        size_t len, n_whole = 0;
        char *file = hr_test_read_file(names[k], &len);

        for (size_t n = 0; n < len; n++) {
            unsigned char *prefix = malloc(n > 0 ? n : 1);
            hr_imatrix out;

            assert_non_null(prefix);
            memcpy(prefix, file, n);
            if (hr_imatrix_parse(prefix, n, "bad.file", &out, NULL) == HEADRACE_OK) {
                hr_imatrix_close(&out);
                n_whole++;
            }
            free(prefix);
        }
        /* The data of the GGUF file is padded: without the padding nothing is missing. */
        assert_true(n_whole <= (k == 0 ? 31 : 1));
        free(file);
    }
}

/* Where `what` lies in the file. */
static char *place_of(char *file, size_t len, const char *what)
{
    char *at = memmem(file, len, what, strlen(what));

    assert_non_null(at);
    return at;
}

static void broken_gguf_files_are_named_with_the_tensor(void **state)
{
    size_t len;
    char *file = hr_test_read_file(DATA "small.gguf", &len), *at;
    float value = NAN;

    (void)state;
    at = place_of(file, len, "imatrix");
    *at = 'm';
    expect_refusal(file, len, "general.type");
    *at = 'i';
    at = place_of(file, len, "attn_q.weight.counts");
    memcpy(at, "attn_q.weight.others", strlen("attn_q.weight.others"));
    expect_refusal(file, len, "without 'blk.1.attn_q.weight.counts'");
    memcpy(at, "attn_q.weight.counts", strlen("attn_q.weight.counts"));
    at = place_of(file, len, "attn_q.weight.in_sum2");
    memcpy(at, "attn_q.weight.in_mean", strlen("attn_q.weight.in_mean"));
    expect_refusal(file, len, "without 'blk.1.attn_q.weight.in_sum2'");
    memcpy(at, "attn_q.weight.in_sum2", strlen("attn_q.weight.in_sum2"));
    memcpy(file + len - 32, &value, sizeof value); /* the last tensor: the counts of blk.3.ffn_up_exps.weight */
    expect_refusal(file, len, "blk.3.ffn_up_exps.weight.counts");
    value = 0.5F;
    memcpy(file + len - 32, &value, sizeof value);
    expect_refusal(file, len, "whole");
    value = 0.0F;
    memcpy(file + len - 32, &value, sizeof value);
    value = -1.0F;
    memcpy(file + len - 64, &value, sizeof value); /* the last but one: its sums */
    expect_refusal(file, len, "'blk.3.ffn_up_exps.weight', byte");
    free(file);
}

static void broken_older_files_are_named_with_the_byte(void **state)
{
    size_t len;
    char *file = hr_test_read_file(DATA "small.dat", &len), *at;
    float value = -INFINITY;

    (void)state;
    expect_refusal("", 0, "the file ends before the number of tensors");
    expect_refusal("\0\0\0\0", 4, "the number of tensors is 0");
    expect_refusal("PK\3\4 and more of an archive", 27, "neither a GGUF file nor an imatrix.dat?");
    at = place_of(file, len, "attn_q.weight");
    memcpy(at + strlen("attn_q.weight") + 8, &value, sizeof value);
    expect_refusal(file, len, "tensor 'blk.1.attn_q.weight', byte");
    value = 1.0F;
    memcpy(at + strlen("attn_q.weight") + 8, &value, sizeof value);
    memcpy(place_of(file, len, "blk.0.shortconv.out_proj"), "blk.0.shortconv.out_pr\0j", 24);
    expect_refusal(file, len, "a zero byte in a tensor's name");
    free(file);
}

static void a_missing_file_is_said(void **state)
{
    hr_imatrix out;
    headrace_error err;

    (void)state;
    assert_int_equal(hr_imatrix_open("/nowhere/imatrix.gguf", &out, &err), HEADRACE_E_IO);
    hr_imatrix_close(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_gguf_file_gives_each_column_its_mean_square),
        cmocka_unit_test(experts_that_few_rows_reached_are_counted),
        cmocka_unit_test(a_column_silent_in_few_rows_still_counts),
        cmocka_unit_test(the_older_form_gives_the_plain_means),
        cmocka_unit_test(a_weight_of_another_shape_is_refused_by_name),
        cmocka_unit_test(what_is_written_is_read_back),
        cmocka_unit_test(sums_that_make_no_sense_are_not_written),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(broken_gguf_files_are_named_with_the_tensor),
        cmocka_unit_test(broken_older_files_are_named_with_the_byte),
        cmocka_unit_test(a_missing_file_is_said),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
