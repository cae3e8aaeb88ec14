/* The GGUF writer: what it puts, the reader finds, where the format says it lies. */
#include "format/gguf_write.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

/* A header with data behind it, read back. The file's bytes stay the caller's. */
static void read_back(const hr_gguf_writer *writer, hr_buffer *file, hr_gguf *out)
{
    headrace_error err = {0};
    size_t header;

    if (hr_gguf_header(writer, file, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    header = file->len;
    assert_int_equal(header % HR_GGUF_ALIGNMENT, 0);
    for (uint64_t i = 0; i < writer->n_data_bytes; i++)
        hr_buffer_add_char(file, (char)i);
    if (hr_gguf_parse((const unsigned char *)file->at, file->len, "w.gguf", out, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
}

static void put_one_of_each(hr_gguf_writer *writer)
{
    static const int32_t numbers[3] = {-1, 0, 7};

    hr_gguf_put_u32(writer, "a.u32", 4000000000u);
    hr_gguf_put_i32(writer, "a.i32", -5);
    hr_gguf_put_f32(writer, "a.f32", 0.25f);
    hr_gguf_put_bool(writer, "a.bool", true);
    hr_gguf_put_string(writer, "a.string", "x\0y", 3);
    hr_gguf_put_i32_array(writer, "a.numbers", numbers, 3);
    hr_gguf_put_strings(writer, "a.strings", 2);
    hr_gguf_put_element(writer, "", 0);
    hr_gguf_put_element(writer, "two", 3);
}

static void assert_one_of_each(const hr_gguf *gguf)
{
    headrace_error err = {0};
    const hr_gguf_value *list;
    const unsigned char *cursor;
    hr_gguf_string text;
    uint32_t number;
    float real;
    bool flag;

    assert_int_equal(hr_gguf_u32(gguf, "a.u32", &number, &err), HEADRACE_OK);
    assert_int_equal(number, 4000000000u);
    assert_int_equal(hr_gguf_find(gguf, "a.i32")->type, HR_GGUF_I32);
    assert_int_equal((signed char)hr_gguf_find(gguf, "a.i32")->at[0], -5);
    assert_int_equal(hr_gguf_f32(gguf, "a.f32", &real, &err), HEADRACE_OK);
    assert_float_equal(real, 0.25f, 0);
    assert_int_equal(hr_gguf_bool(gguf, "a.bool", &flag, &err), HEADRACE_OK);
    assert_true(flag);
    assert_int_equal(hr_gguf_str(gguf, "a.string", &text, &err), HEADRACE_OK);
    assert_int_equal(text.len, 3);
    assert_memory_equal(text.at, "x\0y", 3);
    list = hr_gguf_find(gguf, "a.numbers");
    assert_int_equal(list->element_type, HR_GGUF_I32);
    assert_int_equal(list->n_elements, 3);
    assert_int_equal(hr_gguf_int_at(list, 0), -1);
    assert_int_equal(hr_gguf_int_at(list, 2), 7);
    list = hr_gguf_find(gguf, "a.strings");
    assert_int_equal(list->n_elements, 2);
    cursor = list->at;
    assert_int_equal(hr_gguf_next_string(&cursor).len, 0);
    text = hr_gguf_next_string(&cursor);
    assert_int_equal(text.len, 3);
    assert_memory_equal(text.at, "two", 3);
}

static void test_every_kind_of_value_comes_back(void **state)
{
    hr_gguf_writer writer = {0};
    hr_buffer file = {0};
    hr_gguf gguf;

    (void)state;
    put_one_of_each(&writer);
    read_back(&writer, &file, &gguf);
    assert_int_equal(gguf.version, 3);
    assert_int_equal(gguf.n_entries, 7);
    assert_one_of_each(&gguf);
    hr_gguf_close(&gguf);
    hr_buffer_deinit(&file);
    hr_gguf_writer_deinit(&writer);
}

static void test_entries_of_another_file_are_taken_over_as_they_are(void **state)
{
    hr_gguf_writer first = {0}, second = {0};
    hr_buffer a = {0}, b = {0};
    hr_gguf gguf;

    (void)state;
    put_one_of_each(&first);
    read_back(&first, &a, &gguf);
    for (uint32_t i = 0; i < gguf.n_entries; i++)
        hr_gguf_put_entry(&second, &gguf.entries[i]);
    assert_int_equal(hr_gguf_header(&second, &b, NULL), HEADRACE_OK);
    assert_int_equal(a.len, b.len);
    assert_memory_equal(a.at, b.at, a.len);
    hr_gguf_close(&gguf);
    hr_buffer_deinit(&a);
    hr_buffer_deinit(&b);
    hr_gguf_writer_deinit(&first);
    hr_gguf_writer_deinit(&second);
}

static void test_tensors_lie_where_they_were_promised(void **state)
{
    static const uint64_t vector[1] = {5}, matrix[2] = {3, 256}, stack[3] = {4, 2, 32};
    hr_gguf_writer writer = {0};
    hr_buffer file = {0};
    hr_gguf gguf;
    uint64_t at[3];
    const hr_tensor *tensor;

    (void)state;
    at[0] = hr_gguf_add_tensor(&writer, "v", HR_F32, 1, vector);
    at[1] = hr_gguf_add_tensor(&writer, "m", HR_Q4_K, 2, matrix);
    at[2] = hr_gguf_add_tensor(&writer, "s", HR_Q8_0, 3, stack);
    assert_int_equal(at[0], 0);
    assert_int_equal(at[1], 32);                           /* 20 bytes, padded */
    assert_int_equal(at[2], 32 + 448);                     /* 3 x 144 = 432, padded */
    assert_int_equal(writer.n_data_bytes, 32 + 448 + 288); /* 8 x 34 = 272, padded */
    read_back(&writer, &file, &gguf);
    tensor = hr_tensor_file_find(&gguf.file, "s");
    assert_int_equal(tensor->dtype, HR_Q8_0);
    assert_int_equal(tensor->rank, 3);
    assert_int_equal(tensor->shape[0], 4);
    assert_int_equal(tensor->shape[1], 2);
    assert_int_equal(tensor->shape[2], 32);
    assert_int_equal(tensor->n_bytes, 272);
    assert_int_equal(((const unsigned char *)tensor->data)[0], (unsigned char)at[2]);
    tensor = hr_tensor_file_find(&gguf.file, "m");
    assert_int_equal(tensor->dtype, HR_Q4_K);
    assert_int_equal(tensor->shape[1], 256);
    hr_gguf_close(&gguf);
    hr_buffer_deinit(&file);
    hr_gguf_writer_deinit(&writer);
}

static void test_every_type_has_its_number(void **state)
{
    static const uint64_t row[1] = {256};
    hr_gguf_writer writer = {0};
    hr_buffer file = {0};
    hr_gguf gguf;

    (void)state;
    for (int d = 0; d < HR_DTYPE_COUNT; d++)
        (void)hr_gguf_add_tensor(&writer, hr_dtypes[d].name, (hr_dtype)d, 1, row);
    read_back(&writer, &file, &gguf);
    for (int d = 0; d < HR_DTYPE_COUNT; d++)
        assert_int_equal(hr_tensor_file_find(&gguf.file, hr_dtypes[d].name)->dtype, d);
    hr_gguf_close(&gguf);
    hr_buffer_deinit(&file);
    hr_gguf_writer_deinit(&writer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_kind_of_value_comes_back),
        cmocka_unit_test(test_entries_of_another_file_are_taken_over_as_they_are),
        cmocka_unit_test(test_tensors_lie_where_they_were_promised),
        cmocka_unit_test(test_every_type_has_its_number),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
