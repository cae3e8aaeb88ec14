/* What a tokenizer is made of; for its readers (tokenizer_json.c, tokenizer_gguf.c) and tokenizer.c only. */
#ifndef HR_TEXT_TOKENIZER_PARTS_H
#define HR_TEXT_TOKENIZER_PARTS_H

#include "text/added_tokens.h"
#include "text/pretokenize.h"
#include "text/tokenizer.h"
#include "text/vocabulary.h"

struct hr_tokenizer {
    hr_vocabulary vocabulary;
    hr_added_tokens added;
    hr_splitter splitter;
    bool ignore_merges; /* a piece that is a token as a whole becomes it, whatever its merges would give */
    bool adds_bos;      /* HEADRACE_ENCODE_BOS has an effect */
    int32_t bos, eos;   /* -1: none */

    struct hr_encode_pool *pool; /* what encoding threads need for themselves; the only part that changes after open */
};

/* An empty tokenizer with its lock; NULL without memory. Free with hr_tokenizer_close at any stage. */
hr_tokenizer *hr_tokenizer_new(uint32_t vocab_size);
/* Sets eos to <|im_end|>, else <|endoftext|>, else none: for files that do not say. */
void hr_tokenizer_guess_eos(hr_tokenizer *tokenizer);

#endif
