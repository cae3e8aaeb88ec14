/* See python_text.h. */
#include "text/python_text.h"
#include "base/utf8.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

size_t hr_python_space(const char *text, size_t len)
{
    unsigned char c;
    uint32_t code_point;
    size_t step;
    bool is_valid;

    if (len == 0)
        return 0;
    c = (unsigned char)text[0];
    if (c < 0x80)
        return c == ' ' || (c >= 9 && c <= 13) || (c >= 28 && c <= 31);
    step = hr_utf8_step(text, len, &is_valid);
    if (!is_valid)
        return 0;
    code_point = hr_utf8_decode(text, step);
    if (code_point == 0x85 || code_point == 0xA0 || code_point == 0x1680 ||
        (code_point >= 0x2000 && code_point <= 0x200A) || code_point == 0x2028 || code_point == 0x2029 ||
        code_point == 0x202F || code_point == 0x205F || code_point == 0x3000)
        return step;
    return 0;
}

size_t hr_python_leading_space(const char *text, size_t len)
{
    size_t at = 0, step;

    while ((step = hr_python_space(text + at, len - at)) > 0)
        at += step;
    return at;
}

size_t hr_python_trimmed_len(const char *text, size_t len)
{
    while (len > 0) {
        size_t start = len - 1;

        while (start > 0 && len - start < 4 && ((unsigned char)text[start] & 0xC0) == 0x80)
            start--;
        if (hr_python_space(text + start, len - start) != len - start)
            break;
        len = start;
    }
    return len;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

/* Reads exactly n hex digits; false when there are fewer. */
static bool read_hex(const char *text, size_t len, size_t n, uint32_t *value)
{
    *value = 0;
    if (len < n)
        return false;
    for (size_t i = 0; i < n; i++) {
        int digit = hex_digit(text[i]);

        if (digit < 0)
            return false;
        *value = *value << 4 | (uint32_t)digit;
    }
    return true;
}

static void add_code_point(hr_buffer *out, uint32_t code_point)
{
    char bytes[4];

    if (code_point > 0x10FFFF || (code_point >= 0xD800 && code_point <= 0xDFFF))
        code_point = 0xFFFD;
    hr_buffer_add(out, bytes, hr_utf8_encode(code_point, bytes));
}

/* Escapes of one character; 0 when c starts none of them. */
static char simple_escape(char c)
{
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    const char *found = c ? strchr(from, c) : NULL;

    return found ? to[found - from] : '\0';
}

/* text starts behind the backslash; *used is what the escape took. */
static const char *hex_escape(hr_buffer *out, const char *text, size_t len, size_t *used)
{
    size_t n = text[0] == 'x' ? 2 : text[0] == 'u' ? 4 : 8;
    uint32_t value, low;

    if (!read_hex(text + 1, len - 1, n, &value))
        return n == 2   ? "a \\x escape needs 2 hex digits"
               : n == 4 ? "a \\u escape needs 4 hex digits"
                        : "a \\U escape needs 8 hex digits";
    if (value > 0x10FFFF)
        return "a \\U escape is beyond U+10FFFF";
    *used = 1 + n;
    if (n == 4 && value >= 0xD800 && value <= 0xDBFF && len >= 11 && text[5] == '\\' && text[6] == 'u' &&
        read_hex(text + 7, len - 7, 4, &low) && low >= 0xDC00 && low <= 0xDFFF) {
        value = 0x10000 + ((value - 0xD800) << 10) + (low - 0xDC00);
        *used = 11;
    }
    add_code_point(out, value);
    return NULL;
}

static size_t octal_escape(hr_buffer *out, const char *text, size_t len)
{
    uint32_t value = 0;
    size_t used = 0;

    while (used < 3 && used < len && text[used] >= '0' && text[used] <= '7')
        value = value * 8 + (uint32_t)(text[used++] - '0');
    add_code_point(out, value);
    return used;
}

const char *hr_python_unescape(hr_buffer *out, const char *text, size_t len)
{
    for (size_t i = 0; i < len;) {
        const char *backslash = memchr(text + i, '\\', len - i);
        size_t plain = backslash ? (size_t)(backslash - text) : len;
        char c;

        hr_buffer_add(out, text + i, plain - i);
        if (!backslash)
            break;
        i = plain + 1;
        if (i == len)
            return "a backslash ends the string";
        c = text[i];
        if (simple_escape(c)) {
            hr_buffer_add_char(out, simple_escape(c));
            i++;
        } else if (c == '\n') {
            i++;
        } else if (c >= '0' && c <= '7') {
            i += octal_escape(out, text + i, len - i);
        } else if (c == 'x' || c == 'u' || c == 'U') {
            size_t used = 0;
            const char *problem = hex_escape(out, text + i, len - i, &used);

            if (problem)
                return problem;
            i += used;
        } else if (c == 'N') {
            return "\\N{...} escapes are not supported";
        } else {
            hr_buffer_add_char(out, '\\');
        }
    }
    return NULL;
}

/* Python writes the shortest digits that read back equal, with an exponent below 1e-4 and from 1e16 on. */
void hr_python_float(char out[HR_PYTHON_FLOAT_BYTES], double value)
{
    char text[HR_PYTHON_FLOAT_BYTES], digits[24];
    int exponent, n_digits = 0;

    if (!isfinite(value)) {
        (void)snprintf(out, HR_PYTHON_FLOAT_BYTES, "%s", isnan(value) ? "nan" : value < 0 ? "-inf" : "inf");
        return;
    }
    for (int precision = 0; precision <= 16; precision++) {
        (void)snprintf(text, sizeof text, "%.*e", precision, value);
        if (strtod(text, NULL) == value)
            break;
    }
    exponent = (int)strtol(strchr(text, 'e') + 1, NULL, 10);
    for (const char *at = text; *at != 'e'; at++) {
        if (*at >= '0' && *at <= '9')
            digits[n_digits++] = *at;
    }
    if (exponent >= -4 && exponent < 16) {
        int decimals = n_digits - 1 - exponent;

        (void)snprintf(out, HR_PYTHON_FLOAT_BYTES, "%.*f", decimals < 1 ? 1 : decimals, value);
        return;
    }
    digits[n_digits] = '\0';
    (void)snprintf(out, HR_PYTHON_FLOAT_BYTES, "%s%c%s%se%c%02d", signbit(value) ? "-" : "", digits[0],
                   n_digits > 1 ? "." : "", digits + 1, exponent < 0 ? '-' : '+', abs(exponent));
}
