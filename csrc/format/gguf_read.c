/* Looking up GGUF metadata. Values lie unaligned in the mapping and were bounds-checked when the file was opened. */
#include "format/gguf.h"

#include <math.h>
#include <string.h>

static const char *const type_names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                         "bool", "string", "array", "u64", "i64", "f64"};

const hr_gguf_value *hr_gguf_find(const hr_gguf *gguf, const char *key)
{
    size_t len = strlen(key);

    for (uint32_t i = 0; i < gguf->n_entries; i++)
        if (gguf->entries[i].key.len == len && memcmp(gguf->entries[i].key.at, key, len) == 0)
            return &gguf->entries[i].value;
    return NULL;
}

static headrace_status require(const hr_gguf *gguf, const char *key, const hr_gguf_value **out, headrace_error *err)
{
    *out = hr_gguf_find(gguf, key);
    return *out ? HEADRACE_OK : hr_fail(err, HEADRACE_E_MODEL, "%s: key '%s' is missing", gguf->file.paths[0], key);
}

static headrace_status wrong_type(const hr_gguf *gguf, const char *key, const hr_gguf_value *value,
                                  const char *expected, headrace_error *err)
{
    return hr_fail(err, HEADRACE_E_MODEL, "%s: key '%s', byte %llu: expected %s, found %s", gguf->file.paths[0], key,
                   (unsigned long long)value->offset, expected, type_names[value->type]);
}

static bool is_integer(hr_gguf_type type)
{
    return type <= HR_GGUF_I32 || type == HR_GGUF_U64 || type == HR_GGUF_I64;
}

/* An integer of any width. u64 beyond the range of int64 becomes INT64_MAX: no caller accepts numbers that large. */
static int64_t integer_at(hr_gguf_type type, const unsigned char *at)
{
    union {
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
    } value;

    switch (type) {
    case HR_GGUF_U8:
    case HR_GGUF_BOOL:
        return *at;
    case HR_GGUF_I8:
        return *at < 128 ? *at : *at - 256;
    case HR_GGUF_U16:
        memcpy(&value.u16, at, 2);
        return value.u16;
    case HR_GGUF_I16:
        memcpy(&value.i16, at, 2);
        return value.i16;
    case HR_GGUF_U32:
        memcpy(&value.u32, at, 4);
        return value.u32;
    case HR_GGUF_I32:
        memcpy(&value.i32, at, 4);
        return value.i32;
    case HR_GGUF_U64:
        memcpy(&value.u64, at, 8);
        return value.u64 > INT64_MAX ? INT64_MAX : (int64_t)value.u64;
    case HR_GGUF_I64:
        memcpy(&value.i64, at, 8);
        return value.i64;
    default:
        return 0;
    }
}

headrace_status hr_gguf_u32(const hr_gguf *gguf, const char *key, uint32_t *out, headrace_error *err)
{
    const hr_gguf_value *value;
    int64_t number;

    HR_PASS(require(gguf, key, &value, err));
    if (!is_integer(value->type))
        return wrong_type(gguf, key, value, "an integer", err);
    number = integer_at(value->type, value->at);
    if (number < 0 || number > UINT32_MAX)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: key '%s', byte %llu: %lld is out of range (0 to 4294967295)",
                       gguf->file.paths[0], key, (unsigned long long)value->offset, (long long)number);
    *out = (uint32_t)number;
    return HEADRACE_OK;
}

headrace_status hr_gguf_f32(const hr_gguf *gguf, const char *key, float *out, headrace_error *err)
{
    const hr_gguf_value *value;
    double wide;

    HR_PASS(require(gguf, key, &value, err));
    if (value->type == HR_GGUF_F32) {
        memcpy(out, value->at, 4);
    } else if (value->type == HR_GGUF_F64) {
        memcpy(&wide, value->at, 8);
        *out = fabs(wide) <= 3.4028234663852886e38 ? (float)wide : (float)INFINITY;
    } else {
        return wrong_type(gguf, key, value, "f32", err);
    }
    if (!isfinite(*out))
        return hr_fail(err, HEADRACE_E_MODEL, "%s: key '%s', byte %llu: not a finite number", gguf->file.paths[0], key,
                       (unsigned long long)value->offset);
    return HEADRACE_OK;
}

headrace_status hr_gguf_bool(const hr_gguf *gguf, const char *key, bool *out, headrace_error *err)
{
    const hr_gguf_value *value;

    HR_PASS(require(gguf, key, &value, err));
    if (value->type != HR_GGUF_BOOL)
        return wrong_type(gguf, key, value, "bool", err);
    *out = *value->at != 0;
    return HEADRACE_OK;
}

headrace_status hr_gguf_str(const hr_gguf *gguf, const char *key, hr_gguf_string *out, headrace_error *err)
{
    const hr_gguf_value *value;
    const unsigned char *cursor;

    HR_PASS(require(gguf, key, &value, err));
    if (value->type != HR_GGUF_STRING)
        return wrong_type(gguf, key, value, "string", err);
    cursor = value->at;
    *out = hr_gguf_next_string(&cursor);
    return HEADRACE_OK;
}

int64_t hr_gguf_int_at(const hr_gguf_value *array, uint64_t i)
{
    static const unsigned char bytes[] = {
        [HR_GGUF_U8] = 1,  [HR_GGUF_I8] = 1,  [HR_GGUF_U16] = 2,  [HR_GGUF_I16] = 2, [HR_GGUF_U32] = 4,
        [HR_GGUF_I32] = 4, [HR_GGUF_F32] = 0, [HR_GGUF_BOOL] = 1, [HR_GGUF_U64] = 8, [HR_GGUF_I64] = 8};
    uint32_t type = array->element_type;

    return type < sizeof bytes && bytes[type] ? integer_at(array->element_type, array->at + i * bytes[type]) : 0;
}

hr_gguf_string hr_gguf_next_string(const unsigned char **cursor)
{
    hr_gguf_string text;

    memcpy(&text.len, *cursor, sizeof text.len);
    text.at = (const char *)*cursor + sizeof text.len;
    *cursor += sizeof text.len + text.len;
    return text;
}
