/* UTF-8 by the book (Unicode 15, table 3-7): what is a character, where an invalid one ends, what a stream may hold
 * back. */
#ifndef HR_BASE_UTF8_H
#define HR_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Length of the character at text[0], or of the maximal invalid prefix (>= 1) that one U+FFFD replaces. len >= 1. */
size_t hr_utf8_step(const char *text, size_t len, bool *is_valid);
/* Whether all of text is valid; *bad_offset (may be NULL) is the first byte that is not. */
bool hr_utf8_is_valid(const char *text, size_t len, size_t *bad_offset);
/* How many bytes at the end are a valid but unfinished character (0 .. 3): what a stream holds back. */
size_t hr_utf8_unfinished(const char *text, size_t len);
/* Decodes one valid character of the given step. */
uint32_t hr_utf8_decode(const char *text, size_t step);
/* Writes a code point (a scalar value) and returns its length 1 .. 4. */
size_t hr_utf8_encode(uint32_t code_point, char out[4]);

#endif
