/* JSON from strangers: strict (no duplicate keys, no invalid UTF-8, no lone surrogates, bounded nesting), and errors
 * that say where but never repeat what was sent. */
#ifndef HR_SERVER_JSON_INPUT_H
#define HR_SERVER_JSON_INPUT_H

#include "server/api_error.h"

#include <jansson.h>

#define HR_JSON_DEPTH_MAX 64

/* An object, or NULL with *error filled. The caller owns the reference. */
json_t *hr_json_parse_object(const char *text, size_t len, hr_api_error *error);

#endif
