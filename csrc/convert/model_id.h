/* What a model's name says: "LiquidAI/LFM2-8B-A1B" is the LFM2 of LiquidAI, of size 8B-A1B.
 *
 * GGUF files carry these parts as general.basename, .size_label, .finetune and .version, and tools sort files by them,
 * so they are taken from a name in the way in which llama.cpp's converter takes them.
 */
#ifndef HR_CONVERT_MODEL_ID_H
#define HR_CONVERT_MODEL_ID_H

#include "base/status.h"

enum { HR_MODEL_ID_MAX = 256 };

/* "" where the name says nothing. */
typedef struct hr_model_id {
    char organization[HR_MODEL_ID_MAX], name[HR_MODEL_ID_MAX]; /* in front of and behind the slash, as given */
    char basename[HR_MODEL_ID_MAX], size_label[HR_MODEL_ID_MAX], finetune[HR_MODEL_ID_MAX], version[HR_MODEL_ID_MAX];
} hr_model_id;

/* n_parameters tells sizes from other numbers ("32k" of a context). Names beyond HR_MODEL_ID_MAX - 1 bytes are only
 * `name`, cut off. Errors: E_MEMORY. */
headrace_status hr_model_id_parse(const char *text, uint64_t n_parameters, hr_model_id *out, headrace_error *err);
/* "lfm2-1.2B-chat" becomes "Lfm2 1.2B Chat": words that are all lower case get a capital, versions do not. */
void hr_model_id_title(const char *text, char out[HR_MODEL_ID_MAX]);
/* "1.2B", "350M"; two digits at least. */
void hr_model_size_text(uint64_t n_parameters, char out[32]);

#endif
