/* What Python does with text, where the family's formats depend on it: chat templates run under Python's rules (white
 * space, repr, float spelling, escapes), and models write their tool calls as Python literals.
 */
#ifndef HR_TEXT_PYTHON_TEXT_H
#define HR_TEXT_PYTHON_TEXT_H

#include "base/buffer.h"

/* Bytes of the white space character (str.isspace) at text[0], or 0. */
size_t hr_python_space(const char *text, size_t len);
/* Bytes of leading white space, and the length that is left when trailing white space is cut. */
size_t hr_python_leading_space(const char *text, size_t len);
size_t hr_python_trimmed_len(const char *text, size_t len);

/* Appends text with the escapes of a string literal resolved (\n \x41 \u00e9 \101 ...); unknown escapes stay as they
 * are. Lone surrogates become U+FFFD; a pair becomes its character. Returns NULL, or what is wrong ("a \\x escape needs
 * 2 hex digits"). */
const char *hr_python_unescape(hr_buffer *out, const char *text, size_t len);

/* repr(float): "1.5", "1e+16", "100000.0"; also "inf", "-inf", "nan". */
enum { HR_PYTHON_FLOAT_BYTES = 40 };
void hr_python_float(char out[HR_PYTHON_FLOAT_BYTES], double value);

#endif
