/* safetensors: what is read, and that each kind of damage is refused with a message that names it. */
#include "format/safetensors.h"
#include "support/checkpoint.h"
#include "support/recipe.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

/* header, then n_data zero bytes, in heap memory of exactly that size: a read beyond it is caught by the address
 * sanitizer. */
static headrace_status parse(const char *header, size_t n_data, headrace_error *err, hr_tensor_file *file)
{
    uint64_t length = strlen(header);
    unsigned char *bytes = calloc(1, 8 + length + n_data);
    headrace_status status;

    assert_non_null(bytes);
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, header, length);
    status = hr_safetensors_parse(bytes, 8 + length + n_data, "w.safetensors", file, err);
    free(bytes);
    return status;
}

static void assert_says(const headrace_error *err, const char *text)
{
    if (!strstr(err->message, text))
        fail_msg("expected \"%s\" in \"%s\"", text, err->message);
}

#define ONE(name, dtype, shape, offsets) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" offsets "]}"

static void well_formed_headers_are_read(void **state)
{
    static const struct {
        const char *header;
        size_t n_data;
        uint32_t n_tensors;
    } cases[] = {
        {"{}", 0, 0},
        {"{}   \n", 0, 0},
        {"{\"__metadata__\":{\"format\":\"pt\",\"x\":[1,{\"y\":null}],\"z\":{}}}", 0, 0},
        {"{" ONE("a", "F32", "2,2", "0,16") "}", 16, 1},
        {"{ \"a\" : {\"data_offsets\": [0, 8], \"shape\": [4], \"dtype\": \"BF16\"} }", 8, 1},
        {"{" ONE("b", "F16", "3", "4,10") "," ONE("a", "F32", "", "0,4") "}", 10, 2},
        {"{" ONE("\\u00e9\\ud83d\\ude00\\n", "F32", "1", "0,4") "}", 4, 1},
        {"{" ONE("empty", "F32", "0,7", "0,0") "," ONE("a", "F32", "1", "0,4") "}", 4, 2},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hr_tensor_file file;
        headrace_error err = {0};

        if (parse(cases[i].header, cases[i].n_data, &err, &file) != HEADRACE_OK)
            fail_msg("case %zu: %s", i, err.message);
        assert_int_equal(file.n_tensors, cases[i].n_tensors);
        assert_int_equal(file.weight_bytes, cases[i].n_data);
        hr_tensor_file_close(&file);
    }
}

static void each_kind_of_damage_is_named(void **state)
{
    static const struct {
        const char *header;
        size_t n_data;
        const char *message;
    } cases[] = {
        {"", 0, "byte 8: the JSON ends here, expected '{'"},
        {"[]", 0, "byte 8: expected '{'"},
        {"{\"a\"", 0, "byte 12: the JSON ends here, expected ':'"},
        {"{\"a", 0, "expected the end of a string"},
        {"{\"a\\", 0, "expected one of the escapes"},
        {"{\"a\\u12", 0, "four hexadecimal digits"},
        {"{\"\\ud800x\":1}", 0, "surrogate pair"},
        {"{\"\\u0000\":1}", 0, "other than NUL"},
        {"{\"a\nb\":1}", 0, "no control character"},
        {"{\"a\":1}", 0, "expected '{'"},
        {"{\"a\":{}}", 0, "tensor 'a': 'dtype' is missing"},
        {"{\"a\":{\"dtype\":\"F32\"}}", 0, "tensor 'a': 'shape' is missing"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "tensor 'a': 'data_offsets' is missing"},
        {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", 4, "tensor 'a': 'dtype' occurs twice"},
        {"{\"a\":{\"strides\":[1]}}", 4, "tensor 'a': unknown field 'strides'"},
        {"{" ONE("a", "F32", "1", "0,4") "} x", 4, "expected nothing but blanks"},
        {"{" ONE("a", "F32", "1", "0,4") ",}", 4, "expected '\"'"},
        {"{" ONE("a", "F32", "1", "0,4") ONE("b", "F32", "1", "4,8") "}", 8, "expected ','"},
        {"{" ONE("a", "I64", "1", "0,8") "}", 8, "tensor 'a': dtype 'I64' is not supported (BF16, F16 and F32 are)"},
        {"{" ONE("a", "F8_E4M3", "1", "0,1") "}", 1, "tensor 'a': dtype 'F8_E4M3' is not supported"},
        {"{" ONE("a", "F32", "1,1,1,1,1", "0,4") "}", 4, "tensor 'a': more than 4 dimensions"},
        {"{" ONE("a", "F32", "-1", "0,4") "}", 4, "not negative"},
        {"{" ONE("a", "F32", "1.5", "0,4") "}", 4, "a whole number"},
        {"{" ONE("a", "F32", "1e3", "0,4") "}", 4, "a whole number"},
        {"{" ONE("a", "F32", "18446744073709551616", "0,4") "}", 4, "a number below 2^64"},
        {"{" ONE("a", "F32", "4294967296,4294967296", "0,4") "}", 4, "more than 2^64 values"},
        {"{" ONE("a", "F32", "4611686018427387904", "0,4") "}", 4, "more than 2^64 bytes"},
        {"{" ONE("a", "F32", "1", "4,0") "}", 4, "tensor 'a': data_offsets [4, 0] do not lie in order"},
        {"{" ONE("a", "F32", "2", "0,8") "}", 4, "within the 4 bytes of data"},
        {"{" ONE("a", "F32", "1", "18446744073709551612,18446744073709551615") "}", 4, "do not lie in order"},
        {"{" ONE("a", "F32", "2", "0,4") "}", 4, "span 4 bytes, its shape needs 8"},
        {"{" ONE("a", "F32", "1", "0,4,8") "}", 8, "expected ']'"},
        {"{" ONE("a", "F32", "1", "0") "}", 4, "expected ','"},
        {"{" ONE("a", "F32", "2", "0,8") "," ONE("b", "F32", "1", "4,8") "}", 8, "tensor 'b' at byte"},
        {"{" ONE("a", "F32", "2", "0,8") "," ONE("b", "F32", "1", "4,8") "}", 8, "overlaps a"},
        {"{" ONE("a", "F32", "1", "0,4") "," ONE("b", "F32", "1", "8,12") "}", 12,
         "before tensor 'b', belong to no tensor"},
        {"{" ONE("a", "F32", "1", "4,8") "}", 8, "before tensor 'a', belong to no tensor"},
        {"{" ONE("a", "F32", "1", "0,4") "}", 9, "5 bytes behind the last tensor"},
        {"{" ONE("a", "F32", "1", "0,4") "," ONE("a", "F32", "1", "4,8") "}", 8, "tensor 'a' occurs twice"},
        {"{\"__metadata__\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}", 0,
         "at most 32 deep"},
        {"{\"__metadata__\":{\"a\":}}", 0, "expected a value"},
        {"{\"__metadata__\":{1:2}}", 0, "expected '\"'"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hr_tensor_file file;
        headrace_error err = {0};

        if (parse(cases[i].header, cases[i].n_data, &err, &file) != HEADRACE_E_MODEL)
            fail_msg("case %zu was not refused: %s", i, cases[i].header);
        assert_says(&err, cases[i].message);
        assert_says(&err, "w.safetensors");
        assert_int_equal(file.n_tensors, 0);
    }
}

static void a_name_of_the_greatest_length_is_read_and_a_longer_one_refused(void **state)
{
    (void)state;
    for (size_t len = 254; len <= 256; len++) {
        char header[512], name[300];
        hr_tensor_file file;
        headrace_error err = {0};

        memset(name, 'n', len);
        name[len] = '\0';
        (void)snprintf(header, sizeof header, "{\"%s\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
                       name);
        if (len <= 255) {
            assert_int_equal(parse(header, 4, &err, &file), HEADRACE_OK);
            hr_tensor_file_close(&file);
        } else {
            assert_int_equal(parse(header, 4, &err, &file), HEADRACE_E_MODEL);
            assert_says(&err, "longer than 255 bytes");
        }
    }
}

static void a_hostile_header_length_is_refused(void **state)
{
    static const uint64_t lengths[] = {3, 1000, (16u << 20) + 1, UINT64_MAX, UINT64_MAX - 7};

    (void)state;
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        unsigned char *bytes = calloc(1, 10);
        hr_tensor_file file;
        headrace_error err = {0};

        assert_non_null(bytes);
        memcpy(bytes, &lengths[i], 8);
        assert_int_equal(hr_safetensors_parse(bytes, 10, "w", &file, &err), HEADRACE_E_MODEL);
        assert_says(&err, "byte 0: a header of");
        free(bytes);
    }
}

static void every_truncation_of_a_checkpoint_is_refused(void **state)
{
    hr_test_tensor tensors[HR_TEST_TENSORS_MAX];
    hr_buffer file = {0};
    size_t n = hr_test_small_tensors(false, false, tensors);

    (void)state;
    hr_test_safetensors(&file, tensors, n);
    for (size_t len = 0; len < file.len; len += len < 2500 ? 1 : 997) {
        unsigned char *bytes = malloc(len + 1);
        hr_tensor_file table;
        headrace_error err = {0};

        assert_non_null(bytes);
        memcpy(bytes, file.at, len);
        bytes = realloc(bytes, len ? len : 1);
        assert_int_equal(hr_safetensors_parse(bytes, len, "cut", &table, &err), HEADRACE_E_MODEL);
        free(bytes);
    }
    hr_buffer_deinit(&file);
}

/* ---------------------------------------------------------------- folders */

static headrace_status open_folder(const char *const *files, const char *index, headrace_error *err,
                                   hr_tensor_file *out)
{
    char folder[256];
    headrace_status status;
    hr_buffer bytes = {0};

    hr_test_make_folder(folder, sizeof folder);
    for (size_t i = 0; files[i]; i++) { /* each file holds one tensor, named as the file's first letter */
        hr_test_tensor tensor = {.dtype = "F32", .rank = 1, .shape = {1}};

        tensor.name[0] = files[i][0];
        hr_test_safetensors(&bytes, &tensor, 1);
        hr_test_write_file(folder, files[i], bytes.at, bytes.len);
    }
    if (index)
        hr_test_write_file(folder, "model.safetensors.index.json", index, strlen(index));
    status = hr_safetensors_open_folder(folder, out, err);
    hr_buffer_deinit(&bytes);
    hr_test_remove_folder(folder);
    return status;
}

static void shards_of_an_index_make_one_table(void **state)
{
    static const char *const files[] = {"a.safetensors", "b.safetensors", NULL};
    hr_tensor_file file;
    headrace_error err = {0};

    (void)state;
    assert_int_equal(open_folder(files,
                                 "{\"metadata\":{\"total_size\":8},\"weight_map\":{\"b\":\"b.safetensors\","
                                 "\"a\":\"a.safetensors\"}}",
                                 &err, &file),
                     HEADRACE_OK);
    assert_int_equal(file.n_tensors, 2);
    assert_int_equal(file.n_shards, 2);
    assert_non_null(hr_tensor_file_find(&file, "b"));
    assert_null(hr_tensor_file_find(&file, "c"));
    hr_tensor_file_close(&file);
}

static void the_only_file_of_a_folder_is_found(void **state)
{
    static const char *const files[] = {"adapter.safetensors", NULL};
    hr_tensor_file file;
    headrace_error err = {0};

    (void)state;
    assert_int_equal(open_folder(files, NULL, &err, &file), HEADRACE_OK);
    hr_tensor_file_close(&file);
}

static void an_index_that_lies_is_refused(void **state)
{
    static const char *const none[] = {NULL}, *const one[] = {"a.safetensors", NULL};
    static const char *const two[] = {"a.safetensors", "b.safetensors", NULL}, *const gguf[] = {"a.gguf", NULL};
    static const char *const same[] = {"a.safetensors", "again.safetensors", NULL};
    static const struct {
        const char *const *files;
        const char *index, *message;
    } cases[] = {
        {none, NULL, "no weights: expected model.safetensors"},
        {two, NULL, "2 *.safetensors files, but neither"},
        {gguf, NULL, "to open a GGUF file give its own path"},
        {one, "", "expected '{'"},
        {one, "{}", "'weight_map' is missing"},
        {one, "{\"weight_map\":{}}", "names no file"},
        {one, "{\"weight_map\":{\"a\":\"../a.safetensors\"}}",
         "'../a.safetensors' is not the name of a file in this folder"},
        {one, "{\"weight_map\":{\"a\":\"\"}}", "is not the name of a file"},
        {one, "{\"weight_map\":{\"a\":\"a.safetensors\",\"b\":\"b.safetensors\"}}",
         "'b.safetensors' (2 of 2) is missing"},
        {two, "{\"weight_map\":{\"a\":\"a.safetensors\",\"x\":\"b.safetensors\"}}", "tensor 'x' is said to lie in"},
        {two, "{\"weight_map\":{\"a\":\"b.safetensors\",\"b\":\"a.safetensors\"}}", "tensor 'a' is said to lie in"},
        {same, "{\"weight_map\":{\"a\":\"a.safetensors\",\"b\":\"again.safetensors\"}}", "tensor 'a' occurs twice"},
        {one, "{\"weight_map\":{\"a\":\"a.safetensors\"},\"weight_map\":{}}", "'weight_map' occurs twice"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hr_tensor_file file;
        headrace_error err = {0};

        if (open_folder(cases[i].files, cases[i].index, &err, &file) != HEADRACE_E_MODEL)
            fail_msg("case %zu was not refused", i);
        assert_says(&err, cases[i].message);
    }
}

/* ---------------------------------------------------------------- writing */

static void what_is_written_is_read_back(void **state)
{
    const float a[] = {1.5F, -2.0F, 3.0F}, b[] = {7.0F};
    const hr_safetensors_item items[] = {{.name = "logits.1", .data = a, .rank = 2, .shape = {1, 3}},
                                         {.name = "quote\"\n", .data = b, .rank = 1, .shape = {1}},
                                         {.name = "none", .data = b, .rank = 2, .shape = {0, 3}}};
    char folder[256], path[512];
    hr_tensor_file file;
    headrace_error err = {0};

    (void)state;
    hr_test_make_folder(folder, sizeof folder);
    (void)snprintf(path, sizeof path, "%s/model.safetensors", folder);
    hr_test_write_file(folder, "model.safetensors", "old", 3);
    assert_int_equal(hr_safetensors_write(path, items, 3, &err), HEADRACE_OK);
    if (hr_safetensors_open_folder(folder, &file, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    assert_int_equal(file.n_tensors, 3);
    assert_memory_equal(hr_tensor_file_find(&file, "logits.1")->data, a, sizeof a);
    assert_int_equal(hr_tensor_file_find(&file, "logits.1")->shape[1], 3);
    assert_memory_equal(hr_tensor_file_find(&file, "quote\"\n")->data, b, sizeof b);
    hr_tensor_file_close(&file);
    hr_test_remove_folder(folder);
}

static void a_place_that_cannot_be_written_is_an_io_error(void **state)
{
    headrace_error err = {0};

    (void)state;
    assert_int_equal(hr_safetensors_write("/nonexistent/x.safetensors", NULL, 0, &err), HEADRACE_E_IO);
    assert_says(&err, "/nonexistent/x.safetensors");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(well_formed_headers_are_read),
        cmocka_unit_test(each_kind_of_damage_is_named),
        cmocka_unit_test(a_name_of_the_greatest_length_is_read_and_a_longer_one_refused),
        cmocka_unit_test(a_hostile_header_length_is_refused),
        cmocka_unit_test(every_truncation_of_a_checkpoint_is_refused),
        cmocka_unit_test(shards_of_an_index_make_one_table),
        cmocka_unit_test(the_only_file_of_a_folder_is_found),
        cmocka_unit_test(an_index_that_lies_is_refused),
        cmocka_unit_test(what_is_written_is_read_back),
        cmocka_unit_test(a_place_that_cannot_be_written_is_an_io_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
