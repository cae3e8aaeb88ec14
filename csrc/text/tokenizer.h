/* Byte-level BPE: text to ids and back, from tokenizer.json or from GGUF metadata (the same ids from both).
 *
 * Immutable after open; encode and decode may run on any thread (each thread keeps its own scratch and piece cache
 * inside).
 */
#ifndef HR_TEXT_TOKENIZER_H
#define HR_TEXT_TOKENIZER_H

#include "base/status.h"
#include "format/gguf.h"

typedef struct hr_tokenizer hr_tokenizer;

/* From a tokenizer.json file; tokenizer_config.json beside it, if any, names the end token. A file that would need
 * another pipeline (a normaliser, unk, byte fallback, ...) is refused and the field named. vocab_size: rows of the
 * embedding; ids beyond it refuse the file. Errors: E_IO, E_MODEL.
 */
headrace_status hr_tokenizer_open_json(const char *path, uint32_t vocab_size, hr_tokenizer **out, headrace_error *err);
/* The same from text in memory, for the fuzzer. */
headrace_status hr_tokenizer_parse_json(const char *text, size_t len, const char *path, uint32_t vocab_size,
                                        hr_tokenizer **out, headrace_error *err);
/* From GGUF metadata; the strings are copied. E_MODEL when tokenizer.ggml.model is not gpt2 or pre is unknown. */
headrace_status hr_tokenizer_open_gguf(const hr_gguf *gguf, uint32_t vocab_size, hr_tokenizer **out,
                                       headrace_error *err);
void hr_tokenizer_close(hr_tokenizer *tokenizer);

/* Flags are HEADRACE_ENCODE_*; ENCODE_BOS adds nothing where the file says that texts begin without it. *ids is
 * malloc'ed (free()). Linear time in len. Invalid UTF-8 is read as U+FFFD. Errors: E_ARGUMENT (flags, 2 GiB or more of
 * text), E_MEMORY, E_UNSUPPORTED when the file's splitting expression gives up on the text. */
headrace_status hr_tokenizer_encode(const hr_tokenizer *tokenizer, const char *text, size_t len, uint32_t flags,
                                    int32_t **ids, size_t *n_ids, headrace_error *err);
/* Text in which some ranges may hold special tokens and others are plain (a rendered chat): template text is parsed for
 * special tokens, message text is not. Ranges are consecutive. No bos is added. Adjacent plain ranges, and the plain
 * text around a border, are pre-tokenised as one text, so that only the treatment of special-token spellings differs
 * from encoding the whole. A spelling that reaches from template text into message text is not special. A character
 * whose bytes lie in two ranges is invalid in both. */
typedef struct hr_text_range {
    size_t len;
    bool parse_special;
} hr_text_range;
headrace_status hr_tokenizer_encode_ranges(const hr_tokenizer *tokenizer, const char *text, const hr_text_range *ranges,
                                           size_t n_ranges, int32_t **ids, size_t *n_ids, headrace_error *err);

/* Number of ids with text (ids at and above are padding). */
uint32_t hr_tokenizer_size(const hr_tokenizer *tokenizer);
int32_t hr_tokenizer_bos(const hr_tokenizer *tokenizer); /* -1: none */
int32_t hr_tokenizer_eos(const hr_tokenizer *tokenizer);
/* The id whose text is exactly this special or added token, or -1. */
int32_t hr_tokenizer_find_special(const hr_tokenizer *tokenizer, const char *text, size_t len);
/* The bytes of a token; false for ids without text. The pointer lives as long as the tokenizer. */
bool hr_tokenizer_bytes(const hr_tokenizer *tokenizer, int32_t id, const char **bytes, size_t *len, bool *is_special);
/* The chat template stored with a GGUF file or tokenizer_config.json is not the tokenizer's; see chat_template.h. */

#endif
