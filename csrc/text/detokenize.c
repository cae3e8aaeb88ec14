/* See detokenize.h.
 *
 * Two stages. Bytes become whole characters: a token may end inside one, so up to three bytes wait; a byte that cannot
 * continue them turns what waits into one U+FFFD (Unicode's maximal invalid prefix, as every lossy decoder does it, so
 * that the stream is the same text as decoding all ids at once). Characters then wait while they may be the beginning
 * of a stop string: the longest end of the text that is a proper prefix of one. So an occurrence always lies wholly in
 * `pending`, and only its new bytes are searched.
 */
#include "text/detokenize.h"

#include "base/utf8.h"

#include <string.h>

void hr_detokenizer_init(hr_detokenizer *d, const hr_tokenizer *tokenizer, bool keep_special, bool include_stop,
                         const char *const *stop, uint32_t n_stop)
{
    *d = (hr_detokenizer){
        .tokenizer = tokenizer,
        .keep_special = keep_special,
        .include_stop = include_stop,
        .stop = stop,
        .n_stop = n_stop,
        .stop_hit = -1,
    };
}

void hr_detokenizer_deinit(hr_detokenizer *d)
{
    hr_buffer_deinit(&d->pending);
    hr_buffer_deinit(&d->shown);
}

void hr_detokenizer_taken(hr_detokenizer *d)
{
    hr_buffer_clear(&d->shown);
}

static void replace_unfinished(hr_detokenizer *d)
{
    if (d->n_unfinished > 0)
        hr_buffer_add(&d->pending, "\xEF\xBF\xBD", 3);
    d->n_unfinished = 0;
}

/* Adds one byte to the unfinished character and moves it to pending when it is whole or has become invalid. */
static void add_byte(hr_detokenizer *d, char byte)
{
    bool is_valid;
    size_t step;

    d->unfinished[d->n_unfinished++] = byte;
    step = hr_utf8_step(d->unfinished, d->n_unfinished, &is_valid);
    if (is_valid) {
        hr_buffer_add(&d->pending, d->unfinished, step);
        d->n_unfinished = 0;
    } else if (step <
               d->n_unfinished) { /* the new byte does not belong to what waits: that ends, and the byte begins again */
        d->n_unfinished--;
        replace_unfinished(d);
        add_byte(d, byte);
    } else if (hr_utf8_unfinished(d->unfinished, d->n_unfinished) == 0) {
        replace_unfinished(d);
    }
}

static void add_bytes(hr_detokenizer *d, const char *bytes, size_t len)
{
    for (size_t i = 0; i < len;) {
        if (d->n_unfinished == 0 && (unsigned char)bytes[i] < 0x80) { /* the common case in one go */
            size_t from = i;

            while (i < len && (unsigned char)bytes[i] < 0x80)
                i++;
            hr_buffer_add(&d->pending, bytes + from, i - from);
        } else {
            add_byte(d, bytes[i++]);
        }
    }
}

/* The stop string that ends first in pending, not before `from`; of those that end together, the one that begins first.
 */
static bool find_stop(hr_detokenizer *d, size_t from, size_t *begin, size_t *end)
{
    const char *text = d->pending.at;

    for (size_t at = from + 1; at <= d->pending.len; at++) {
        size_t longest = 0;

        for (uint32_t i = 0; i < d->n_stop; i++) {
            size_t len = strlen(d->stop[i]);

            if (len > longest && len <= at && memcmp(text + at - len, d->stop[i], len) == 0) {
                longest = len;
                d->stop_hit = (int32_t)i;
            }
        }
        if (longest > 0) {
            *begin = at - longest;
            *end = at;
            return true;
        }
    }
    return false;
}

/* Length of the longest end of pending that is a proper prefix of a stop string. */
static size_t held_back(const hr_detokenizer *d)
{
    size_t longest = 0;

    for (uint32_t i = 0; i < d->n_stop; i++) {
        size_t len = strlen(d->stop[i]), n = len ? len - 1 : 0;

        for (n = n < d->pending.len ? n : d->pending.len; n > longest; n--) {
            if (memcmp(d->pending.at + d->pending.len - n, d->stop[i], n) == 0) {
                longest = n;
                break;
            }
        }
    }
    return longest;
}

/* Moves the first n bytes of pending to shown. */
static void release(hr_detokenizer *d, size_t n)
{
    if (n == 0)
        return;
    hr_buffer_add(&d->shown, d->pending.at, n);
    memmove(d->pending.at, d->pending.at + n, d->pending.len - n + 1); /* with the terminator */
    d->pending.len -= n;
}

bool hr_detokenizer_add(hr_detokenizer *d, int32_t id, bool check_stop)
{
    size_t old_len = d->pending.len, len, begin, end;
    const char *bytes;
    bool is_special;

    HR_ASSERT(d->stop_hit < 0);
    if (!hr_tokenizer_bytes(d->tokenizer, id, &bytes, &len, &is_special) || (is_special && !d->keep_special))
        return false;
    add_bytes(d, bytes, len);
    if (d->pending.failed || d->pending.len == old_len)
        return false;
    if (check_stop && find_stop(d, old_len, &begin, &end)) {
        release(d, d->include_stop ? end : begin);
        hr_buffer_clear(&d->pending);
        d->n_unfinished = 0;
        return true;
    }
    release(d, d->pending.len - held_back(d));
    return false;
}

void hr_detokenizer_finish(hr_detokenizer *d)
{
    replace_unfinished(d);
    if (!d->pending.failed)
        release(d, d->pending.len);
}
