/* The text between <|tool_call_start|> and <|tool_call_end|>: read it when the model wrote it, write it for its
 * history.
 *
 *     calls := "[" call ("," call)* "]"          call := name "(" (identifier "=" value ("," ...)*)? ")"
 *     value := string | number | True | False | None | list | dict          (Python literals; JSON's true, false, null
 * too)
 *
 * Reading is tolerant, because a model is no compiler: raw control characters and unescaped quotes inside strings,
 * leading zeros, a missing bracket; a call that cannot be read is left out and the others stay. A JSON array (or one
 * object) of
 * {"name": ..., "arguments": {...}} is read as well.
 */
#ifndef HR_TEXT_TOOL_CALL_H
#define HR_TEXT_TOOL_CALL_H

#include "base/buffer.h"

#include <jansson.h>

enum {
    HR_TOOL_CALL_MAX_NESTING = 64,    /* of values in an argument */
    HR_TOOL_CALL_MAX_ARGUMENTS = 256, /* of one call */
    HR_TOOL_CALL_MAX_CALLS = 128,     /* of one block; the rest is left out */
};

/* Called for each call that could be read, in order. arguments: JSON text of an object, in argument order. Both are
 * borrowed. */
typedef void hr_tool_call_found(void *user, const char *name, size_t name_len, const char *arguments,
                                size_t arguments_len);

/* Returns how many calls were read; 0: the text is no tool call. */
size_t hr_tool_calls_parse(const char *text, size_t len, hr_tool_call_found *found, void *user);

/* Appends name(a="x", n=2) as the model writes it. arguments: a JSON object. False when it is nested too deep. */
bool hr_tool_call_write(hr_buffer *out, const char *name, size_t name_len, const json_t *arguments);

#endif
