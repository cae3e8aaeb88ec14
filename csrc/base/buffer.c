/* See buffer.h. */
#include "base/buffer.h"
#include "base/utf8.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void hr_buffer_deinit(hr_buffer *buffer)
{
    free(buffer->at);
    *buffer = (hr_buffer){0};
}

void hr_buffer_clear(hr_buffer *buffer)
{
    buffer->len = 0;
    buffer->failed = false;
    if (buffer->at)
        buffer->at[0] = '\0';
}

bool hr_buffer_reserve(hr_buffer *buffer, size_t extra)
{
    size_t need, capacity;
    char *at;

    if (buffer->failed || __builtin_add_overflow(buffer->len, extra, &need) || need > SIZE_MAX / 2) {
        buffer->failed = true;
        return false;
    }
    need += 1;
    if (need <= buffer->capacity)
        return true;
    capacity = buffer->capacity < 128 ? 128 : buffer->capacity;
    while (capacity < need)
        capacity *= 2;
    at = realloc(buffer->at, capacity);
    if (!at) {
        buffer->failed = true;
        return false;
    }
    buffer->at = at;
    buffer->capacity = capacity;
    return true;
}

void hr_buffer_add(hr_buffer *buffer, const void *bytes, size_t len)
{
    if (!hr_buffer_reserve(buffer, len))
        return;
    if (len > 0)
        memcpy(buffer->at + buffer->len, bytes, len);
    buffer->len += len;
    buffer->at[buffer->len] = '\0';
}

void hr_buffer_add_text(hr_buffer *buffer, const char *text)
{
    hr_buffer_add(buffer, text, strlen(text));
}

void hr_buffer_add_char(hr_buffer *buffer, char c)
{
    hr_buffer_add(buffer, &c, 1);
}

void hr_buffer_printf(hr_buffer *buffer, const char *format, ...)
{
    va_list args, again;
    int n;

    va_start(args, format);
    va_copy(again, args);
    n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n >= 0 && hr_buffer_reserve(buffer, (size_t)n)) {
        (void)vsnprintf(buffer->at + buffer->len, (size_t)n + 1, format, again);
        buffer->len += (size_t)n;
    }
    va_end(again);
}

char *hr_buffer_take(hr_buffer *buffer, size_t *len)
{
    char *at;

    if (!hr_buffer_reserve(buffer, 0)) {
        hr_buffer_deinit(buffer);
        return NULL;
    }
    at = buffer->at;
    at[buffer->len] = '\0';
    if (len)
        *len = buffer->len;
    *buffer = (hr_buffer){0};
    return at;
}

void hr_json_string(hr_buffer *buffer, const char *text, size_t len)
{
    static const char hex[] = "0123456789abcdef";
    size_t plain = 0; /* start of the run not yet copied */

    hr_buffer_add_char(buffer, '"');
    for (size_t i = 0; i < len;) {
        unsigned char c = (unsigned char)text[i];
        size_t step = 1;
        char escape[8] = {'\\', 0};
        size_t escape_len = 2;

        if (c >= 0x20 && c < 0x80 && c != '"' && c != '\\') {
            i++;
            continue;
        }
        if (c >= 0x80) {
            bool is_valid;

            step = hr_utf8_step(text + i, len - i, &is_valid);
            if (is_valid) {
                i += step;
                continue;
            }
            memcpy(escape, "\xEF\xBF\xBD", 3);
            escape_len = 3;
        } else if (c == '"' || c == '\\') {
            escape[1] = (char)c;
        } else if (c == '\n') {
            escape[1] = 'n';
        } else if (c == '\t') {
            escape[1] = 't';
        } else if (c == '\r') {
            escape[1] = 'r';
        } else {
            memcpy(escape + 1, "u00", 3);
            escape[4] = hex[c >> 4];
            escape[5] = hex[c & 15];
            escape_len = 6;
        }
        hr_buffer_add(buffer, text + plain, i - plain);
        hr_buffer_add(buffer, escape, escape_len);
        i += step;
        plain = i;
    }
    hr_buffer_add(buffer, text + plain, len - plain);
    hr_buffer_add_char(buffer, '"');
}

void hr_json_int(hr_buffer *buffer, int64_t value)
{
    hr_buffer_printf(buffer, "%" PRId64, value);
}

void hr_json_uint(hr_buffer *buffer, uint64_t value)
{
    hr_buffer_printf(buffer, "%" PRIu64, value);
}

void hr_json_double(hr_buffer *buffer, double value)
{
    char text[40];

    if (!isfinite(value)) {
        hr_buffer_add_text(buffer, "null");
        return;
    }
    for (int digits = 15; digits <= 17; digits++) {
        (void)snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    hr_buffer_add_text(buffer, text);
}

void hr_json_float(hr_buffer *buffer, float value)
{
    char text[40];

    if (!isfinite(value)) {
        hr_buffer_add_text(buffer, "null");
        return;
    }
    for (int digits = 6; digits <= 9; digits++) {
        (void)snprintf(text, sizeof text, "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value)
            break;
    }
    hr_buffer_add_text(buffer, text);
}
