/* Ids to text as they come: whole characters only, stop strings never shown by halves.
 *
 * Holds back at most 3 bytes of an unfinished character and the longest suffix that may become a stop string. In
 * caller's storage; one owner.
 */
#ifndef HR_TEXT_DETOKENIZE_H
#define HR_TEXT_DETOKENIZE_H

#include "base/buffer.h"
#include "text/tokenizer.h"

typedef struct hr_detokenizer {
    const hr_tokenizer *tokenizer;
    bool keep_special, include_stop;
    uint32_t n_stop;
    const char *const *stop; /* [n_stop], borrowed, terminated; empty ones are never found */
    char unfinished[4];      /* the first bytes of a character whose rest has not come */
    uint8_t n_unfinished;
    hr_buffer pending; /* whole characters not yet shown: the beginning of a stop string, perhaps */
    hr_buffer shown;   /* what was released; valid until the next call */
    int32_t stop_hit;  /* index of the stop string that was found, or -1 */
} hr_detokenizer;

void hr_detokenizer_init(hr_detokenizer *d, const hr_tokenizer *tokenizer, bool keep_special, bool include_stop,
                         const char *const *stop, uint32_t n_stop);
void hr_detokenizer_deinit(hr_detokenizer *d);
/* Adds one id; an id without text adds nothing. A stop string is found when its last byte comes with an id added with
 * check_stop; false stands for "not yet" (min_tokens): one that ends there is ordinary text, while one that only begins
 * there is still found, and cut off whole, when it ends later. Of several, the one that ends first counts, and of those
 * the one that begins first, however the text was cut into tokens. Text released is appended to d->shown (the caller
 * clears it with hr_detokenizer_taken). Returns true when a stop string was completed: the text before it (and itself,
 * with include_stop) is in shown, the rest is dropped, and no further id may be added. d->shown.failed or
 * d->pending.failed tell that memory ran out. */
bool hr_detokenizer_add(hr_detokenizer *d, int32_t id, bool check_stop);
/* At the end without a stop string: releases everything held back; an unfinished character becomes one U+FFFD. */
void hr_detokenizer_finish(hr_detokenizer *d);
void hr_detokenizer_taken(hr_detokenizer *d);

#endif
