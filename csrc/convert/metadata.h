/* The key-value part of a GGUF file made from a Hugging Face folder: the keys that llama.cpp's converter writes for
 * this family, with its types, so that every reader of such files finds what it looks for.
 *
 * One file of code a source of facts: metadata.c the network's sizes, metadata_general.c the model's name and card,
 * metadata_tokenizer.c vocabulary, special ids and chat template.
 */
#ifndef HR_CONVERT_METADATA_H
#define HR_CONVERT_METADATA_H

#include "convert/imatrix.h"
#include "convert/plan.h"
#include "format/gguf_write.h"

#include <jansson.h>

typedef struct hr_metadata_source {
    const hr_model *model;
    const hr_plan *plan;
    const hr_mix *mix;
    const hr_imatrix *imatrix; /* NULL: none */
} hr_metadata_source;

/* Puts all entries. A folder's are made from its files; a GGUF file's are taken over, but for file_type,
 * quantization_version, alignment and what says that it was split. Errors: E_IO, E_MODEL, E_MEMORY; E_UNSUPPORTED for a
 * tokenizer that GGUF would read differently. */
headrace_status hr_metadata_put(const hr_metadata_source *source, hr_gguf_writer *writer, headrace_error *err);

/* The parts, for a folder. config: its config.json. */
headrace_status hr_metadata_put_general(const hr_metadata_source *source, const json_t *config, hr_gguf_writer *writer,
                                        headrace_error *err);
headrace_status hr_metadata_put_tokenizer(const hr_metadata_source *source, const json_t *config,
                                          hr_gguf_writer *writer, headrace_error *err);

/* A file of the folder as JSON, as a new reference; *out is NULL when there is none. E_MODEL when it is no object. */
headrace_status hr_metadata_read_json(const char *folder, const char *name, json_t **out, headrace_error *err);
/* A field of config.json, or of its "text_config" where the text model is a part; NULL when absent or null. */
const json_t *hr_metadata_field(const json_t *config, const char *name);

#endif
