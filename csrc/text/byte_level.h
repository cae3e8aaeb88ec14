/* The spelling of bytes as printable characters that byte-level BPE files use ("Ġ" is a space). */
#ifndef HR_TEXT_BYTE_LEVEL_H
#define HR_TEXT_BYTE_LEVEL_H

#include <stdbool.h>
#include <stddef.h>

/* Turns a spelling (UTF-8) into the bytes it stands for. out has room for len bytes and may be spelling itself. Returns
 * false when a character stands for no byte; out is then undefined. */
bool hr_byte_level_decode(const char *spelling, size_t len, char *out, size_t *out_len);
/* The way back: bytes to their spelling. out has room for 2 x len bytes; returns how many were written. */
size_t hr_byte_level_encode(const char *bytes, size_t len, char *out);

#endif
