/* See gguf_write.h. */
#include "format/gguf_write.h"

#include <string.h>

/* The host is little endian, as the file is (the readers rely on it too). */
static void add_u32(hr_buffer *out, uint32_t value)
{
    hr_buffer_add(out, &value, sizeof value);
}

static void add_u64(hr_buffer *out, uint64_t value)
{
    hr_buffer_add(out, &value, sizeof value);
}

static void add_text(hr_buffer *out, const char *text, size_t len)
{
    add_u64(out, len);
    hr_buffer_add(out, text, len);
}

static void begin(hr_gguf_writer *writer, const char *key, hr_gguf_type type)
{
    add_text(&writer->entries, key, strlen(key));
    add_u32(&writer->entries, type);
    writer->n_entries++;
}

static void begin_array(hr_gguf_writer *writer, const char *key, hr_gguf_type type, uint64_t n)
{
    begin(writer, key, HR_GGUF_ARRAY);
    add_u32(&writer->entries, type);
    add_u64(&writer->entries, n);
}

void hr_gguf_writer_deinit(hr_gguf_writer *writer)
{
    hr_buffer_deinit(&writer->entries);
    hr_buffer_deinit(&writer->tensors);
    *writer = (hr_gguf_writer){0};
}

void hr_gguf_put_u32(hr_gguf_writer *writer, const char *key, uint32_t value)
{
    begin(writer, key, HR_GGUF_U32);
    add_u32(&writer->entries, value);
}

void hr_gguf_put_i32(hr_gguf_writer *writer, const char *key, int32_t value)
{
    begin(writer, key, HR_GGUF_I32);
    hr_buffer_add(&writer->entries, &value, sizeof value);
}

void hr_gguf_put_f32(hr_gguf_writer *writer, const char *key, float value)
{
    begin(writer, key, HR_GGUF_F32);
    hr_buffer_add(&writer->entries, &value, sizeof value);
}

void hr_gguf_put_bool(hr_gguf_writer *writer, const char *key, bool value)
{
    begin(writer, key, HR_GGUF_BOOL);
    hr_buffer_add_char(&writer->entries, value ? 1 : 0);
}

void hr_gguf_put_string(hr_gguf_writer *writer, const char *key, const char *text, size_t len)
{
    begin(writer, key, HR_GGUF_STRING);
    add_text(&writer->entries, text, len);
}

void hr_gguf_put_i32_array(hr_gguf_writer *writer, const char *key, const int32_t *values, uint64_t n)
{
    begin_array(writer, key, HR_GGUF_I32, n);
    hr_buffer_add(&writer->entries, values, (size_t)n * sizeof *values);
}

void hr_gguf_put_strings(hr_gguf_writer *writer, const char *key, uint64_t n)
{
    begin_array(writer, key, HR_GGUF_STRING, n);
}

void hr_gguf_put_element(hr_gguf_writer *writer, const char *text, size_t len)
{
    add_text(&writer->entries, text, len);
}

/* Bytes of a checked value, as it lies at `at`. */
static size_t value_bytes(hr_gguf_type type, const unsigned char *at, uint64_t n)
{
    static const unsigned char bytes[] = {[HR_GGUF_U8] = 1,  [HR_GGUF_I8] = 1,  [HR_GGUF_U16] = 2, [HR_GGUF_I16] = 2,
                                          [HR_GGUF_U32] = 4, [HR_GGUF_I32] = 4, [HR_GGUF_F32] = 4, [HR_GGUF_BOOL] = 1,
                                          [HR_GGUF_U64] = 8, [HR_GGUF_I64] = 8, [HR_GGUF_F64] = 8};
    const unsigned char *end = at;

    if (type != HR_GGUF_STRING)
        return (size_t)n * bytes[type];
    for (uint64_t i = 0; i < n; i++)
        (void)hr_gguf_next_string(&end);
    return (size_t)(end - at);
}

void hr_gguf_put_entry(hr_gguf_writer *writer, const hr_gguf_entry *entry)
{
    const hr_gguf_value *value = &entry->value;
    bool is_array = value->type == HR_GGUF_ARRAY;
    hr_gguf_type type = is_array ? value->element_type : value->type;

    add_text(&writer->entries, entry->key.at, (size_t)entry->key.len);
    add_u32(&writer->entries, value->type);
    if (is_array) {
        add_u32(&writer->entries, value->element_type);
        add_u64(&writer->entries, value->n_elements);
    }
    hr_buffer_add(&writer->entries, value->at, value_bytes(type, value->at, is_array ? value->n_elements : 1));
    writer->n_entries++;
}

/* ggml's numbers of our types. */
static const uint32_t ggml_types[HR_DTYPE_COUNT] = {
    [HR_F32] = 0,  [HR_F16] = 1,  [HR_BF16] = 30, [HR_Q4_0] = 2,  [HR_Q4_1] = 3,  [HR_Q5_0] = 6,
    [HR_Q5_1] = 7, [HR_Q8_0] = 8, [HR_Q4_K] = 12, [HR_Q5_K] = 13, [HR_Q6_K] = 14,
};

uint64_t hr_gguf_add_tensor(hr_gguf_writer *writer, const char *name, hr_dtype dtype, uint32_t rank,
                            const uint64_t *shape)
{
    uint64_t offset = writer->n_data_bytes, n_bytes = hr_dtype_row_bytes(dtype, (size_t)shape[rank - 1]);

    add_text(&writer->tensors, name, strlen(name));
    add_u32(&writer->tensors, rank);
    for (uint32_t i = rank; i-- > 0;) /* the fastest first */
        add_u64(&writer->tensors, shape[i]);
    add_u32(&writer->tensors, ggml_types[dtype]);
    add_u64(&writer->tensors, offset);
    for (uint32_t i = 0; i + 1 < rank; i++)
        n_bytes *= shape[i];
    writer->n_data_bytes += (n_bytes + HR_GGUF_ALIGNMENT - 1) / HR_GGUF_ALIGNMENT * HR_GGUF_ALIGNMENT;
    writer->n_tensors++;
    return offset;
}

headrace_status hr_gguf_header(const hr_gguf_writer *writer, hr_buffer *header, headrace_error *err)
{
    hr_buffer_add(header, "GGUF", 4);
    add_u32(header, 3);
    add_u64(header, writer->n_tensors);
    add_u64(header, writer->n_entries);
    if (writer->entries.at)
        hr_buffer_add(header, writer->entries.at, writer->entries.len);
    if (writer->tensors.at)
        hr_buffer_add(header, writer->tensors.at, writer->tensors.len);
    while (header->len % HR_GGUF_ALIGNMENT != 0 && !header->failed)
        hr_buffer_add_char(header, '\0');
    if (writer->entries.failed || writer->tensors.failed || header->failed)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for a GGUF header");
    return HEADRACE_OK;
}
