/* See json_scan.h. */
#include "format/json_scan.h"

#include "base/utf8.h"

#include <string.h>

enum { DEPTH_MAX = 32 };

headrace_status hr_scan_fail(const hr_json_scan *scan, const char *expected)
{
    unsigned long long offset = scan->file_offset + scan->at;

    if (scan->at >= scan->len)
        return hr_fail(scan->err, HEADRACE_E_MODEL, "%s: byte %llu: the JSON ends here, expected %s", scan->path,
                       offset, expected);
    return hr_fail(scan->err, HEADRACE_E_MODEL, "%s: byte %llu: expected %s, found byte 0x%02x", scan->path, offset,
                   expected, (unsigned)(unsigned char)scan->text[scan->at]);
}

char hr_scan_peek(hr_json_scan *scan)
{
    while (scan->at < scan->len && scan->text[scan->at] != '\0' && strchr(" \t\r\n", scan->text[scan->at]))
        scan->at++;
    return scan->at < scan->len ? scan->text[scan->at] : '\0';
}

headrace_status hr_scan_expect(hr_json_scan *scan, char c)
{
    char expected[] = "'?'";

    if (hr_scan_peek(scan) != c || scan->at >= scan->len) {
        expected[1] = c;
        return hr_scan_fail(scan, expected);
    }
    scan->at++;
    return HEADRACE_OK;
}

headrace_status hr_scan_next(hr_json_scan *scan, char closing, bool is_first, bool *more)
{
    char c = hr_scan_peek(scan);

    *more = c != closing;
    if (c == closing) {
        scan->at++;
        return HEADRACE_OK;
    }
    return is_first ? HEADRACE_OK : hr_scan_expect(scan, ',');
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static headrace_status scan_hex4(hr_json_scan *scan, uint32_t *out)
{
    *out = 0;
    for (int i = 0; i < 4; i++) {
        int digit = scan->at < scan->len ? hex_digit(scan->text[scan->at]) : -1;

        if (digit < 0)
            return hr_scan_fail(scan, "four hexadecimal digits");
        *out = *out << 4 | (uint32_t)digit;
        scan->at++;
    }
    return HEADRACE_OK;
}

/* Behind "\u": one code point, from one escape or a surrogate pair. */
static headrace_status scan_code_point(hr_json_scan *scan, uint32_t *out)
{
    uint32_t low;

    HR_PASS(scan_hex4(scan, out));
    if (*out == 0 || (*out >= 0xDC00 && *out <= 0xDFFF))
        return hr_scan_fail(scan, "an escape of a character other than NUL or half a pair");
    if (*out < 0xD800 || *out > 0xDBFF)
        return HEADRACE_OK;
    if (scan->len - scan->at < 2 || memcmp(scan->text + scan->at, "\\u", 2) != 0)
        return hr_scan_fail(scan, "the second half of a surrogate pair");
    scan->at += 2;
    HR_PASS(scan_hex4(scan, &low));
    if (low < 0xDC00 || low > 0xDFFF)
        return hr_scan_fail(scan, "the second half of a surrogate pair");
    *out = 0x10000 + ((*out - 0xD800) << 10) + (low - 0xDC00);
    return HEADRACE_OK;
}

/* Behind a backslash: writes what the escape stands for. */
static headrace_status scan_escape(hr_json_scan *scan, char out[4], size_t *n)
{
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    const char *found;
    uint32_t code_point;

    if (scan->at < scan->len && scan->text[scan->at] == 'u') {
        scan->at++;
        HR_PASS(scan_code_point(scan, &code_point));
        *n = hr_utf8_encode(code_point, out);
        return HEADRACE_OK;
    }
    found = scan->at < scan->len && scan->text[scan->at] != '\0' ? strchr(letters, scan->text[scan->at]) : NULL;
    if (!found)
        return hr_scan_fail(scan, "one of the escapes of JSON");
    scan->at++;
    out[0] = meanings[found - letters];
    *n = 1;
    return HEADRACE_OK;
}

/* out may be NULL: the string is only checked. */
static headrace_status scan_string(hr_json_scan *scan, char *out, size_t capacity)
{
    size_t used = 0;

    HR_PASS(hr_scan_expect(scan, '"'));
    for (;;) {
        char piece[4];
        size_t n = 1;

        if (scan->at >= scan->len)
            return hr_scan_fail(scan, "the end of a string");
        piece[0] = scan->text[scan->at];
        if ((unsigned char)piece[0] < 0x20)
            return hr_scan_fail(scan, "no control character inside a string");
        scan->at++;
        if (piece[0] == '"')
            break;
        if (piece[0] == '\\')
            HR_PASS(scan_escape(scan, piece, &n));
        if (!out)
            continue;
        if (used + n >= capacity)
            return hr_fail(scan->err, HEADRACE_E_MODEL, "%s: byte %llu: a name or text longer than %zu bytes",
                           scan->path, (unsigned long long)(scan->file_offset + scan->at), capacity - 1);
        memcpy(out + used, piece, n);
        used += n;
    }
    if (out)
        out[used] = '\0';
    return HEADRACE_OK;
}

headrace_status hr_scan_string(hr_json_scan *scan, char *out, size_t capacity)
{
    return scan_string(scan, out, capacity);
}

headrace_status hr_scan_u64(hr_json_scan *scan, uint64_t *out)
{
    char c = hr_scan_peek(scan);

    if (c < '0' || c > '9')
        return hr_scan_fail(scan, "a whole number that is not negative");
    *out = 0;
    for (; scan->at < scan->len && scan->text[scan->at] >= '0' && scan->text[scan->at] <= '9'; scan->at++)
        if (__builtin_mul_overflow(*out, 10u, out) ||
            __builtin_add_overflow(*out, (uint64_t)(scan->text[scan->at] - '0'), out))
            return hr_scan_fail(scan, "a number below 2^64");
    if (scan->at < scan->len && scan->text[scan->at] != '\0' && strchr(".eE", scan->text[scan->at]))
        return hr_scan_fail(scan, "a whole number");
    return HEADRACE_OK;
}

static headrace_status skip_scalar(hr_json_scan *scan)
{
    size_t begin = scan->at;

    while (scan->at < scan->len && scan->text[scan->at] != '\0' && !strchr(",]} \t\r\n\"[{:", scan->text[scan->at]))
        scan->at++;
    return scan->at > begin ? HEADRACE_OK : hr_scan_fail(scan, "a value");
}

/* Without recursion: a stack of closing bytes. */
headrace_status hr_scan_skip(hr_json_scan *scan)
{
    char closing[DEPTH_MAX];
    int depth = 0;
    bool is_first = true;

    do {
        char c = hr_scan_peek(scan);
        bool more = true;

        if (c == '{' || c == '[') {
            if (depth == DEPTH_MAX)
                return hr_scan_fail(scan, "JSON nested at most 32 deep");
            closing[depth++] = c == '{' ? '}' : ']';
            scan->at++;
            is_first = true;
        } else {
            HR_PASS(c == '"' ? scan_string(scan, NULL, 0) : skip_scalar(scan));
            is_first = false;
        }
        while (depth > 0) {
            HR_PASS(hr_scan_next(scan, closing[depth - 1], is_first, &more));
            is_first = false;
            if (more)
                break;
            depth--;
        }
        if (depth > 0 && closing[depth - 1] == '}') {
            HR_PASS(scan_string(scan, NULL, 0));
            HR_PASS(hr_scan_expect(scan, ':'));
        }
    } while (depth > 0);
    return HEADRACE_OK;
}
