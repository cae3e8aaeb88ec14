/* A tokenizer as GGUF metadata: the inverse of hr_tokenizer_open_gguf, in the words of llama.cpp's converter. */
#ifndef HR_TEXT_TOKENIZER_WRITE_H
#define HR_TEXT_TOKENIZER_WRITE_H

#include "format/gguf_write.h"
#include "text/tokenizer.h"

/* Puts tokenizer.ggml.model, .pre, .tokens, .token_type and .merges. Tokens are in byte-level spelling, special and
 * added ones as they are; the ids from hr_tokenizer_size to vocab_size, and the holes below, become "[PADn]", unused.
 * The caller has made sure that the splitting expression is the family's (hr_splitter_lfm2), which "lfm2" names.
 * Errors: E_MEMORY. */
headrace_status hr_tokenizer_put_gguf(const hr_tokenizer *tokenizer, uint32_t vocab_size, hr_gguf_writer *writer,
                                      headrace_error *err);

/* Whether two tokenizers read every ordinary token's own text as the same ids, alone and after a letter and a space:
 * GGUF readers take a piece that is a token as a whole, tokenizer.json only what the merges give. E_UNSUPPORTED names
 * the first token that they read differently. */
headrace_status hr_tokenizer_compare(const hr_tokenizer *left, const hr_tokenizer *right, headrace_error *err);

#endif
