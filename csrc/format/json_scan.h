/* A pull scanner for JSON that comes with weights: the safetensors header and the shard index.
 *
 * A general reader builds a tree, and a hostile 16 MiB header can make that tree twenty times as large. This one holds
 * nothing: the caller asks for what it expects, one token at a time, and an unexpected byte is an error that says where
 * it lies in the file. Depth is bounded. Used by safetensors.c only; everything else reads JSON with Jansson.
 */
#ifndef HR_FORMAT_JSON_SCAN_H
#define HR_FORMAT_JSON_SCAN_H

#include "base/status.h"

typedef struct hr_json_scan {
    const char *text;
    size_t len, at;
    uint64_t file_offset; /* of text[0], for messages */
    const char *path;     /* for messages */
    headrace_error *err;
} hr_json_scan;

/* Skips blanks; the next byte, or 0 at the end. */
char hr_scan_peek(hr_json_scan *scan);
/* Skips blanks and takes exactly this byte. */
headrace_status hr_scan_expect(hr_json_scan *scan, char c);
/* Between the members of an object or array: *more tells whether another one follows; takes the comma or the closing
 * byte. is_first: nothing was read yet after the opening byte. */
headrace_status hr_scan_next(hr_json_scan *scan, char closing, bool is_first, bool *more);
/* A string, unescaped and terminated. Longer than capacity - 1 bytes, or with a NUL inside: E_MODEL. */
headrace_status hr_scan_string(hr_json_scan *scan, char *out, size_t capacity);
/* A whole number 0 .. 2^64 - 1 without sign, fraction or exponent. */
headrace_status hr_scan_u64(hr_json_scan *scan, uint64_t *out);
/* Any value, checked for form only. */
headrace_status hr_scan_skip(hr_json_scan *scan);
/* Fails with the file, the byte offset and `expected`. */
headrace_status hr_scan_fail(const hr_json_scan *scan, const char *expected);

#endif
