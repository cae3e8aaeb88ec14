/* Splitting text into the pieces that merges never cross, by the checkpoint's own regular expression. */
#ifndef HR_TEXT_PRETOKENIZE_H
#define HR_TEXT_PRETOKENIZE_H

#include "base/buffer.h"
#include "base/status.h"

/* The expression of the LFM2 family, for files that only name it (GGUF: tokenizer.ggml.pre = lfm2). */
extern const char hr_splitter_lfm2[];

/* Compiled; immutable, shared by threads. */
typedef struct hr_splitter {
    struct pcre2_real_code_8 *code;
    bool is_jit; /* false: the system allows no executable memory; the slower interpreter runs */
} hr_splitter;

/* A walk over one text; owned by one thread, used again for many texts. */
typedef struct hr_split_walk {
    struct pcre2_real_match_data_8 *match;
    struct pcre2_real_match_context_8 *context;
    struct pcre2_real_jit_stack_8 *stack;
    hr_buffer replaced; /* see new_characters.h */
    const char *text;
    size_t len, at;
    size_t match_begin, match_end; /* found but not yet handed out, when match_end > at */
} hr_split_walk;

/* E_MODEL for an expression that does not compile, can match nothing, or uses what PCRE2 and the reference (Oniguruma)
 * read differently; the message names the construct. */
headrace_status hr_splitter_init(hr_splitter *splitter, const char *pattern, size_t len, headrace_error *err);
void hr_splitter_deinit(hr_splitter *splitter);

headrace_status hr_split_walk_init(hr_split_walk *walk, const hr_splitter *splitter, headrace_error *err);
void hr_split_walk_deinit(hr_split_walk *walk);
/* text must be valid UTF-8 and stay in place until the walk has ended. */
headrace_status hr_split_begin(hr_split_walk *walk, const char *text, size_t len, headrace_error *err);
/* The next piece's length; 0 at the end. Pieces follow each other without gaps: what the expression does not match is a
 * piece too. */
headrace_status hr_split_next(hr_split_walk *walk, const hr_splitter *splitter, size_t *piece_len, headrace_error *err);

#endif
