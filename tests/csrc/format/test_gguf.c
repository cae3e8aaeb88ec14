/* GGUF: what is read, and that each kind of damage is refused with a message that names it. */
#include "format/gguf.h"
#include "support/checkpoint.h"
#include "support/recipe.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void assert_says(const headrace_error *err, const char *text)
{
    if (!strstr(err->message, text))
        fail_msg("expected \"%s\" in \"%s\"", text, err->message);
}

/* Parses a heap copy of exactly len bytes, so that the address sanitizer sees any read beyond them. */
static headrace_status parse(const void *bytes, size_t len, headrace_error *err)
{
    unsigned char *copy = malloc(len ? len : 1);
    hr_gguf gguf;
    headrace_status status;

    assert_non_null(copy);
    memcpy(copy, bytes, len);
    status = hr_gguf_parse(copy, len, "w.gguf", &gguf, err);
    if (status == HEADRACE_OK)
        hr_gguf_close(&gguf);
    free(copy);
    return status;
}

static void refuse(hr_buffer *file, const char *message)
{
    headrace_error err = {0};

    if (parse(file->at, file->len, &err) != HEADRACE_E_MODEL)
        fail_msg("not refused; expected \"%s\"", message);
    assert_says(&err, message);
    assert_says(&err, "w.gguf");
}

static void make_small(hr_buffer *file)
{
    hr_test_tensor tensors[HR_TEST_TENSORS_MAX];
    hr_test_gguf gguf = {0};
    size_t n = hr_test_small_tensors(true, false, tensors);

    hr_test_gguf_small_keys(&gguf, false, NULL);
    for (size_t i = 0; i < n; i++)
        hr_test_gguf_tensor(&gguf, &tensors[i]);
    hr_test_gguf_finish(&gguf, file);
}

/* ---------------------------------------------------------------- reading */

static void add_scalars(hr_test_gguf *gguf)
{
    const uint64_t big = 5000000000u;
    const int64_t negative = -5;
    const uint16_t narrow = 3;
    const double real = 0.25;

    hr_test_gguf_raw(gguf, "u64", 10, &big, 8);
    hr_test_gguf_raw(gguf, "i64", 11, &negative, 8);
    hr_test_gguf_raw(gguf, "u16", 2, &narrow, 2);
    hr_test_gguf_raw(gguf, "f64", 12, &real, 8);
    hr_test_gguf_raw(gguf, "yes", 7, "\1", 1);
    hr_test_gguf_u32(gguf, "u32", 7);
    hr_test_gguf_f32(gguf, "f32", 1.5F);
    hr_test_gguf_str(gguf, "str", "hello");
    hr_test_gguf_raw(gguf, "strs", 9, "\10\0\0\0\2\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0x\2\0\0\0\0\0\0\0yz", 31);
    hr_test_gguf_raw(gguf, "i8s", 9, "\1\0\0\0\2\0\0\0\0\0\0\0\xFF\5", 14);
}

static void values_of_every_kind_are_read(void **state)
{
    hr_test_gguf made = {0};
    hr_buffer file = {0};
    hr_gguf gguf;
    headrace_error err = {0};
    uint32_t u32;
    float f32;
    bool yes;
    hr_gguf_string text;
    const unsigned char *cursor;

    (void)state;
    add_scalars(&made);
    hr_test_gguf_finish(&made, &file);
    assert_int_equal(hr_gguf_parse((unsigned char *)file.at, file.len, "w", &gguf, &err), HEADRACE_OK);
    assert_int_equal(hr_gguf_u32(&gguf, "u32", &u32, &err), HEADRACE_OK);
    assert_int_equal(u32, 7);
    assert_int_equal(hr_gguf_u32(&gguf, "u16", &u32, &err), HEADRACE_OK);
    assert_int_equal(u32, 3);
    assert_int_equal(hr_gguf_f32(&gguf, "f64", &f32, &err), HEADRACE_OK);
    assert_true(f32 == 0.25F);
    assert_int_equal(hr_gguf_bool(&gguf, "yes", &yes, &err), HEADRACE_OK);
    assert_true(yes);
    assert_int_equal(hr_gguf_str(&gguf, "str", &text, &err), HEADRACE_OK);
    assert_int_equal(text.len, 5);
    assert_memory_equal(text.at, "hello", 5);
    cursor = hr_gguf_find(&gguf, "strs")->at;
    assert_int_equal(hr_gguf_next_string(&cursor).len, 1);
    text = hr_gguf_next_string(&cursor);
    assert_memory_equal(text.at, "yz", 2);
    assert_int_equal(hr_gguf_int_at(hr_gguf_find(&gguf, "i8s"), 0), -1);
    assert_int_equal(hr_gguf_int_at(hr_gguf_find(&gguf, "i8s"), 1), 5);
    hr_gguf_close(&gguf);
    hr_buffer_deinit(&file);
}

static void a_value_of_another_kind_is_named(void **state)
{
    hr_test_gguf made = {0};
    hr_buffer file = {0};
    hr_gguf gguf;
    headrace_error err = {0};
    uint32_t u32;
    float f32;
    bool yes;
    hr_gguf_string text;

    (void)state;
    add_scalars(&made);
    hr_test_gguf_finish(&made, &file);
    assert_int_equal(hr_gguf_parse((unsigned char *)file.at, file.len, "w", &gguf, &err), HEADRACE_OK);
    assert_int_equal(hr_gguf_u32(&gguf, "absent", &u32, &err), HEADRACE_E_MODEL);
    assert_says(&err, "key 'absent' is missing");
    assert_int_equal(hr_gguf_u32(&gguf, "str", &u32, &err), HEADRACE_E_MODEL);
    assert_says(&err, "expected an integer, found string");
    assert_int_equal(hr_gguf_u32(&gguf, "u64", &u32, &err), HEADRACE_E_MODEL);
    assert_says(&err, "key 'u64', byte 39: 5000000000 is out of range");
    assert_int_equal(hr_gguf_u32(&gguf, "i64", &u32, &err), HEADRACE_E_MODEL);
    assert_says(&err, "-5 is out of range");
    assert_int_equal(hr_gguf_f32(&gguf, "u32", &f32, &err), HEADRACE_E_MODEL);
    assert_says(&err, "expected f32, found u32");
    assert_int_equal(hr_gguf_bool(&gguf, "u32", &yes, &err), HEADRACE_E_MODEL);
    assert_says(&err, "expected bool, found u32");
    assert_int_equal(hr_gguf_str(&gguf, "strs", &text, &err), HEADRACE_E_MODEL);
    assert_says(&err, "expected string, found array");
    hr_gguf_close(&gguf);
    hr_buffer_deinit(&file);
}

static void version_2_is_read_as_version_3(void **state)
{
    hr_buffer file = {0};
    headrace_error err = {0};

    (void)state;
    make_small(&file);
    file.at[4] = 2;
    assert_int_equal(parse(file.at, file.len, &err), HEADRACE_OK);
    hr_buffer_deinit(&file);
}

static void another_alignment_is_obeyed(void **state)
{
    static const uint32_t alignments[] = {1, 8, 64, 4096};

    (void)state;
    for (size_t i = 0; i < sizeof alignments / sizeof *alignments; i++) {
        hr_test_gguf made = {.alignment = alignments[i]};
        const unsigned char odd[4] = {1, 2, 3, 4};
        const hr_test_tensor a = {.name = "a", .dtype = "BF16", .rank = 1, .shape = {1}};
        const hr_test_tensor b = {.name = "b", .dtype = "F32", .rank = 1, .shape = {1}, .data = odd};
        hr_buffer file = {0};
        hr_gguf gguf;

        hr_test_gguf_u32(&made, "general.alignment", alignments[i]);
        hr_test_gguf_tensor(&made, &a);
        hr_test_gguf_tensor(&made, &b);
        hr_test_gguf_finish(&made, &file);
        assert_int_equal(hr_gguf_parse((unsigned char *)file.at, file.len, "w", &gguf, NULL), HEADRACE_OK);
        assert_memory_equal(hr_tensor_file_find(&gguf.file, "b")->data, odd, 4);
        hr_gguf_close(&gguf);
        hr_buffer_deinit(&file);
    }
}

/* ---------------------------------------------------------------- damage */

static void put(hr_buffer *file, size_t at, uint64_t value, size_t n)
{
    memcpy(file->at + at, &value, n);
}

static void a_damaged_head_is_named(void **state)
{
    static const struct {
        size_t at, n;
        uint64_t value;
        const char *message;
    } cases[] = {
        {0, 4, 0x46554746, "byte 0: not a GGUF file (it begins with 46 47 55 46)"},
        {4, 4, 1, "byte 4: GGUF version 1 is not supported (2 and 3 are)"},
        {4, 4, 4, "byte 4: GGUF version 4 is not supported"},
        {4, 4, 0, "byte 4: GGUF version 0 is not supported"},
        {4, 4, 0x03000000, "byte 4: a big-endian GGUF file"},
        {8, 8, UINT64_MAX, "byte 8: 18446744073709551615 tensors in a file"},
        {8, 8, 100000, "byte 8: 100000 tensors"},
        {8, 8, 60000, "byte 8: 60000 tensors"},
        {16, 8, UINT64_MAX, "byte 16: 18446744073709551615 metadata keys"},
        {16, 8, 70000, "byte 16: 70000 metadata keys"},
        {16, 8, 0, "tensor 0: w.gguf"},
        {24, 8, UINT64_MAX, "metadata key 0: w.gguf: byte 24: a key of 18446744073709551615 bytes"},
        {24, 8, 0, "a key of 0 bytes"},
        {52, 4, 13, "key 'general.architecture': w.gguf: byte 52: unknown value type 13"},
        {52, 4, 9, "key 'general.architecture'"},
        {56, 8, 1u << 30, "a string of 1073741824 bytes"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hr_buffer file = {0};

        make_small(&file);
        put(&file, cases[i].at, cases[i].value, cases[i].n);
        refuse(&file, cases[i].message);
        hr_buffer_deinit(&file);
    }
}

static void damaged_arrays_are_named(void **state)
{
    static const struct {
        uint32_t type;
        uint64_t n;
        const char *message;
    } cases[] = {
        {9, 1, "arrays of arrays are not supported"},
        {13, 1, "unknown element type 13"},
        {UINT32_MAX, 1, "unknown element type"},
        {4, UINT64_MAX, "an array of 18446744073709551615 elements"},
        {4, 3, "an array of 3 elements in a file with 8 bytes left"},
        {8, 2, "an array of 2 elements"},
        {8, 1, "a string of 4294967297 bytes"},
    };
    const uint32_t ones[2] = {1, 1};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hr_test_gguf made = {.alignment = 1};
        hr_buffer file = {0};

        hr_test_gguf_u32s(&made, "k", ones, 2);
        hr_test_gguf_finish(&made, &file);
        put(&file, 24 + 8 + 1 + 4, cases[i].type, 4);
        put(&file, 24 + 8 + 1 + 8, cases[i].n, 8);
        refuse(&file, cases[i].message);
        hr_buffer_deinit(&file);
    }
}

/* The only tensor of a file without keys: its entry begins at byte 24, its data at byte 96. */
static void damaged_tensors_are_named(void **state)
{
    enum { RANK = 24 + 8 + 1, DIM0 = RANK + 4, DIM1 = DIM0 + 8, TYPE = DIM1 + 8, OFFSET = TYPE + 4 };
    static const struct {
        size_t at, n;
        uint64_t value;
        const char *message;
    } cases[] = {
        {24, 8, 0, "a tensor's name of 0 bytes"},
        {24, 8, 1u << 20, "a tensor's name of 1048576 bytes"},
        {32, 1, 0, "none of them 0"},
        {RANK, 4, 0, "tensor 'a': 0 dimensions (1 to 4 are allowed)"},
        {RANK, 4, 5, "tensor 'a': 5 dimensions"},
        {DIM0, 8, UINT64_MAX, "more than 2^64 values"},
        {DIM0, 8, 1ull << 61, "more than 2^64 bytes"},
        {DIM0, 8, 1u << 20, "8388608 bytes at byte 96, but the file has 128 bytes (truncated?)"},
        {TYPE, 4, 23, "tensor 'a': type 23 (IQ4_XS) is not supported"},
        {TYPE, 4, 4, "tensor 'a': type 4 (Q4_2, removed) is not supported"},
        {TYPE, 4, 5, "tensor 'a': type 5 (Q4_3, removed) is not supported"},
        {TYPE, 4, 31, "tensor 'a': type 31 (Q4_0_4_4, removed) is not supported"},
        {TYPE, 4, 33, "tensor 'a': type 33 (Q4_0_8_8, removed) is not supported"},
        {TYPE, 4, 38, "tensor 'a': type 38 (IQ4_NL_8_8, removed) is not supported"},
        {TYPE, 4, 20, "tensor 'a': type 20 (IQ4_NL) is not supported"},
        {TYPE, 4, 15, "tensor 'a': type 15 (Q8_K) is not supported"},
        {TYPE, 4, 1000, "tensor 'a': type 1000 (unknown) is not supported"},
        {TYPE, 4, UINT32_MAX, "type 4294967295 (unknown)"},
        {TYPE, 4, 8, "tensor 'a': rows of 4 values are no whole number of Q8_0 blocks of 32"},
        {TYPE, 4, 12, "tensor 'a': rows of 4 values are no whole number of Q4_K blocks of 256"},
        {OFFSET, 8, 8, "tensor 'a': offset 8 is no multiple of the alignment 32"},
        {OFFSET, 8, 64, "tensor 'a': 32 bytes at byte 160"},
        {OFFSET, 8, UINT64_MAX - 31, "tensor 'a'"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const hr_test_tensor a = {.name = "a", .dtype = "F32", .rank = 2, .shape = {2, 4}};
        hr_test_gguf made = {0};
        hr_buffer file = {0};

        hr_test_gguf_tensor(&made, &a);
        hr_test_gguf_finish(&made, &file);
        put(&file, cases[i].at, cases[i].value, cases[i].n);
        refuse(&file, cases[i].message);
        hr_buffer_deinit(&file);
    }
}

static void names_and_places_occur_once(void **state)
{
    const hr_test_tensor a = {.name = "a", .dtype = "F32", .rank = 1, .shape = {16}};
    hr_test_tensor b = {.name = "b", .dtype = "F32", .rank = 1, .shape = {16}};
    hr_test_gguf made = {0};
    hr_buffer file = {0};

    (void)state;
    hr_test_gguf_tensor(&made, &a);
    hr_test_gguf_tensor(&made, &b);
    hr_test_gguf_finish(&made, &file);
    put(&file, 24 + 33 + 25, 32, 8); /* b's offset: into the second half of a */
    refuse(&file, "tensor 'b' at byte 128 overlaps a, which ends at byte 160");

    b.name[0] = 'a';
    hr_test_gguf_tensor(&made, &a);
    hr_test_gguf_tensor(&made, &b);
    hr_test_gguf_finish(&made, &file);
    refuse(&file, "tensor 'a' occurs twice");

    hr_test_gguf_u32(&made, "k", 1);
    hr_test_gguf_u32(&made, "j", 1);
    hr_test_gguf_u32(&made, "k", 2);
    hr_test_gguf_finish(&made, &file);
    refuse(&file, "key 'k' occurs twice");
    hr_buffer_deinit(&file);
}

static void an_alignment_that_is_no_power_of_two_is_refused(void **state)
{
    static const uint32_t alignments[] = {0, 3, 33, UINT32_MAX};
    hr_buffer file = {0};

    (void)state;
    for (size_t i = 0; i < sizeof alignments / sizeof *alignments; i++) {
        hr_test_gguf made = {0};

        hr_test_gguf_u32(&made, "general.alignment", alignments[i]);
        hr_test_gguf_finish(&made, &file);
        refuse(&file, "not a power of two");
    }
    hr_buffer_deinit(&file);
}

static void metadata_beyond_the_limit_are_refused(void **state)
{
    static const uint64_t limit = 64 << 20;
    unsigned char head[12] = {0};
    hr_test_gguf made = {0};
    hr_buffer file = {0};

    (void)state;
    memcpy(head + 4, &limit, 8);
    hr_test_gguf_raw(&made, "k", 9, head, sizeof head);
    for (uint64_t i = 0; i < limit / sizeof head + 1; i++)
        hr_buffer_add(&made.keys, head, sizeof head);
    hr_test_gguf_finish(&made, &file);
    refuse(&file, "key 'k', byte 49: the metadata are larger than the 67108864 bytes allowed");
    hr_buffer_deinit(&file);
}

static void every_truncation_of_a_file_is_refused(void **state)
{
    hr_buffer file = {0};

    (void)state;
    make_small(&file);
    for (size_t len = 0; len < file.len; len += len < 3000 ? 1 : 997) {
        headrace_error err = {0};

        if (parse(file.at, len, &err) != HEADRACE_E_MODEL)
            fail_msg("%zu of %zu bytes were not refused", len, file.len);
    }
    hr_buffer_deinit(&file);
}

/* ---------------------------------------------------------------- split files */

static void write_part(const char *folder, const char *name, uint32_t number, uint32_t count, const char *tensor_name,
                       uint32_t n_tensors)
{
    hr_test_gguf made = {0};
    hr_buffer file = {0};
    hr_test_tensor tensor = {.dtype = "F32", .rank = 1, .shape = {8}};

    (void)snprintf(tensor.name, sizeof tensor.name, "%s", tensor_name);
    if (number == 0)
        hr_test_gguf_str(&made, "general.architecture", "lfm2");
    hr_test_gguf_u32(&made, "split.no", number);
    hr_test_gguf_u32(&made, "split.count", count);
    hr_test_gguf_u32(&made, "split.tensors.count", n_tensors);
    hr_test_gguf_tensor(&made, &tensor);
    hr_test_gguf_finish(&made, &file);
    hr_test_write_file(folder, name, file.at, file.len);
    hr_buffer_deinit(&file);
}

static headrace_status open_part(const char *folder, const char *name, hr_gguf *gguf, headrace_error *err)
{
    char path[512];

    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    return hr_gguf_open(path, gguf, err);
}

static void any_part_of_a_split_file_opens_all(void **state)
{
    static const char *const names[] = {"m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"};
    char folder[256];

    (void)state;
    hr_test_make_folder(folder, sizeof folder);
    for (uint32_t i = 0; i < 3; i++)
        write_part(folder, names[i], i, 3, (const char[]){(char)('a' + i), '\0'}, 3);
    for (uint32_t i = 0; i < 3; i++) {
        hr_gguf gguf;
        headrace_error err = {0};

        if (open_part(folder, names[i], &gguf, &err) != HEADRACE_OK)
            fail_msg("%s", err.message);
        assert_int_equal(gguf.file.n_shards, 3);
        assert_int_equal(gguf.file.n_tensors, 3);
        assert_int_equal(hr_tensor_file_find(&gguf.file, "c")->shard, 2);
        assert_non_null(hr_gguf_find(&gguf, "general.architecture"));
        hr_gguf_close(&gguf);
    }
    hr_test_remove_folder(folder);
}

static void a_split_file_that_does_not_fit_together_is_refused(void **state)
{
    static const struct {
        const char *names[2];
        uint32_t numbers[2], count, n_tensors;
        const char *tensors[2];
        const char *open, *message;
    } cases[] = {
        {{"m-00001-of-00002.gguf"}, {0, 1}, 2, 2, {"a", "b"}, "m-00001-of-00002.gguf", "part 2 of 2 is missing: "},
        {{"whole.gguf"}, {0}, 2, 2, {"a"}, "whole.gguf", "one of 2 parts of a split file, but not named like one"},
        {{"m-00001-of-00002.gguf", "m-00002-of-00002.gguf"},
         {0, 0},
         2,
         2,
         {"a", "b"},
         "m-00001-of-00002.gguf",
         "its keys say part 1 of 2, its name part 2 of 2"},
        {{"m-00001-of-00002.gguf", "m-00002-of-00002.gguf"},
         {0, 1},
         3,
         2,
         {"a", "b"},
         "m-00002-of-00002.gguf",
         "its keys say part 1 of 3, its name part 1 of 2"},
        {{"m-00001-of-00002.gguf", "m-00002-of-00002.gguf"},
         {0, 1},
         2,
         5,
         {"a", "b"},
         "m-00001-of-00002.gguf",
         "key 'split.tensors.count' is 5, but the 2 files hold 2 tensors"},
        {{"m-00001-of-00002.gguf", "m-00002-of-00002.gguf"},
         {0, 1},
         2,
         2,
         {"a", "a"},
         "m-00001-of-00002.gguf",
         "tensor 'a' occurs twice"},
        {{"m-00001-of-09999.gguf"}, {0}, 9999, 2, {"a"}, "m-00001-of-09999.gguf", "more than the 1000 allowed"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char folder[256];
        hr_gguf gguf;
        headrace_error err = {0};

        hr_test_make_folder(folder, sizeof folder);
        for (size_t j = 0; j < 2 && cases[i].names[j]; j++)
            write_part(folder, cases[i].names[j], cases[i].numbers[j], cases[i].count, cases[i].tensors[j],
                       cases[i].n_tensors);
        assert_int_equal(open_part(folder, cases[i].open, &gguf, &err), HEADRACE_E_MODEL);
        assert_says(&err, cases[i].message);
        hr_test_remove_folder(folder);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_of_every_kind_are_read),
        cmocka_unit_test(a_value_of_another_kind_is_named),
        cmocka_unit_test(version_2_is_read_as_version_3),
        cmocka_unit_test(another_alignment_is_obeyed),
        cmocka_unit_test(a_damaged_head_is_named),
        cmocka_unit_test(damaged_arrays_are_named),
        cmocka_unit_test(damaged_tensors_are_named),
        cmocka_unit_test(names_and_places_occur_once),
        cmocka_unit_test(an_alignment_that_is_no_power_of_two_is_refused),
        cmocka_unit_test(metadata_beyond_the_limit_are_refused),
        cmocka_unit_test(every_truncation_of_a_file_is_refused),
        cmocka_unit_test(any_part_of_a_split_file_opens_all),
        cmocka_unit_test(a_split_file_that_does_not_fit_together_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
