/* See golden_file.h. */
#include "csrc/backend/golden_file.h"

#include "support/recipe.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void require(bool holds, const char *what, const char *where)
{
    if (!holds) {
        (void)fprintf(stderr, "%s: %s\n", where, what);
        abort();
    }
}

void golden_open(golden_file *file, const char *path)
{
    uint64_t header_bytes;
    size_t len;

    file->bytes = hr_test_read_file(path, &len);
    require(len > 8, "too short", path);
    memcpy(&header_bytes, file->bytes, 8);
    require(header_bytes <= len - 8 && header_bytes % 4 == 0, "bad header length", path);
    file->header = json_loadb(file->bytes + 8, (size_t)header_bytes, 0, NULL);
    require(file->header != NULL, "bad header", path);
    file->data = 8 + (size_t)header_bytes;
}

void golden_close(golden_file *file)
{
    json_decref(file->header);
    free(file->bytes);
}

golden_tensor golden_get(const golden_file *file, const char *format, ...)
{
    char name[128];
    va_list arguments;
    golden_tensor out = {.n = 1};
    json_t *entry, *shape;
    const char *dtype, *at;

    va_start(arguments, format);
    (void)vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    entry = json_object_get(file->header, name);
    if (!entry)
        return (golden_tensor){0};
    dtype = json_string_value(json_object_get(entry, "dtype"));
    shape = json_object_get(entry, "shape");
    at = file->bytes + file->data + json_integer_value(json_array_get(json_object_get(entry, "data_offsets"), 0));
    out.rank = (uint32_t)json_array_size(shape);
    require(out.rank <= 4, "more than 4 dimensions", name);
    for (uint32_t i = 0; i < out.rank; i++) {
        out.shape[i] = (uint32_t)json_integer_value(json_array_get(shape, i));
        out.n *= out.shape[i];
    }
    if (strcmp(dtype, "F32") == 0)
        out.f32 = (const float *)(const void *)at;
    else if (strcmp(dtype, "I32") == 0)
        out.i32 = (const int32_t *)(const void *)at;
    else
        require(false, "unexpected dtype", name);
    return out;
}

double golden_number(const json_t *json, const char *path)
{
    char key[128], *rest = key, *part;

    (void)snprintf(key, sizeof key, "%s", path);
    while (json && (part = strsep(&rest, "/")))
        json = json_object_get(json, part);
    require(json != NULL && (json_is_number(json) || json_is_boolean(json)), "no such number", path);
    return json_is_boolean(json) ? json_is_true(json) : json_number_value(json);
}
