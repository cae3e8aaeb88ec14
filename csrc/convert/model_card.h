/* The facts at the head of a model card (README.md): license, languages, tags, what the model was made from.
 *
 * The head is YAML between two lines of "---". Of that language cards use little, and only that little is read: a name
 * and a text, or a name and a list ("- item" lines, or [a, b]). A name whose value is written in any other way is left
 * out.
 */
#ifndef HR_CONVERT_MODEL_CARD_H
#define HR_CONVERT_MODEL_CARD_H

#include "base/status.h"

#include <jansson.h>

/* An object of strings and arrays of strings, as a new reference; empty when the text has no such head. NULL without
 * memory. */
json_t *hr_model_card_parse(const char *text, size_t len);

#endif
