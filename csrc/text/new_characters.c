/* See new_characters.h.
 *
 * Ids must not depend on the version of a system library. The reference splits by Unicode 16 classes; PCRE2 10.42 knows
 * Unicode 14, and later versions know more. So a letter or digit that came after Unicode 14 is shown to the regex as an
 * old one of the same length: a letter as a CJK ideograph (U+4E00, U+20000), a digit as an old digit (U+0966, U+1D7CE).
 * A newer PCRE2 then gives the same pieces. U+180E is the one difference in white space: PCRE2 counts it, Unicode no
 * longer does (U+200B has its length and is neither letter, number nor blank).
 *
 * The table is the difference between \p{L}, \p{N}, \s of the two libraries over all code points;
 * tests/python/test_tokenizer.py compares every code point again.
 */
#include "text/new_characters.h"

#include "base/utf8.h"

typedef enum char_class { LETTER, NUMBER, OTHER } char_class;
typedef struct range {
    uint32_t first, last;
    char_class class;
} range;

static const range ranges[] = {
    {0x180E, 0x180E, OTHER},    {0x1C89, 0x1C8A, LETTER},   {0xA7CB, 0xA7CD, LETTER},   {0xA7DA, 0xA7DC, LETTER},
    {0x105C0, 0x105F3, LETTER}, {0x10D40, 0x10D49, NUMBER}, {0x10D4A, 0x10D65, LETTER}, {0x10D6F, 0x10D85, LETTER},
    {0x10EC2, 0x10EC4, LETTER}, {0x1123F, 0x11240, LETTER}, {0x11380, 0x11389, LETTER}, {0x1138B, 0x1138B, LETTER},
    {0x1138E, 0x1138E, LETTER}, {0x11390, 0x113B5, LETTER}, {0x113B7, 0x113B7, LETTER}, {0x113D1, 0x113D1, LETTER},
    {0x113D3, 0x113D3, LETTER}, {0x116D0, 0x116E3, NUMBER}, {0x11BC0, 0x11BE0, LETTER}, {0x11BF0, 0x11BF9, NUMBER},
    {0x11F02, 0x11F02, LETTER}, {0x11F04, 0x11F10, LETTER}, {0x11F12, 0x11F33, LETTER}, {0x11F50, 0x11F59, NUMBER},
    {0x1342F, 0x1342F, LETTER}, {0x13441, 0x13446, LETTER}, {0x13460, 0x143FA, LETTER}, {0x16100, 0x1611D, LETTER},
    {0x16130, 0x16139, NUMBER}, {0x16D40, 0x16D6C, LETTER}, {0x16D70, 0x16D79, NUMBER}, {0x18CFF, 0x18CFF, LETTER},
    {0x1B132, 0x1B132, LETTER}, {0x1B155, 0x1B155, LETTER}, {0x1CCF0, 0x1CCF9, NUMBER}, {0x1D2C0, 0x1D2D3, NUMBER},
    {0x1DF25, 0x1DF2A, LETTER}, {0x1E030, 0x1E06D, LETTER}, {0x1E4D0, 0x1E4EB, LETTER}, {0x1E4F0, 0x1E4F9, NUMBER},
    {0x1E5D0, 0x1E5ED, LETTER}, {0x1E5F0, 0x1E5F0, LETTER}, {0x1E5F1, 0x1E5FA, NUMBER}, {0x2B739, 0x2B739, LETTER},
    {0x2EBF0, 0x2EE5D, LETTER}, {0x31350, 0x323AF, LETTER},
};
enum { N_RANGES = sizeof ranges / sizeof ranges[0] };

static const char *const stand_in[][5] = {
    [LETTER] = {NULL, NULL, NULL, "\xE4\xB8\x80", "\xF0\xA0\x80\x80"},
    [NUMBER] = {NULL, NULL, NULL, "\xE0\xA5\xA6", "\xF0\x9D\x9F\x8E"},
    [OTHER] = {NULL, NULL, NULL, "\xE2\x80\x8B", NULL},
};

static const range *find(uint32_t c)
{
    uint32_t low = 0, high = N_RANGES;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (c > ranges[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    return low < N_RANGES && c >= ranges[low].first ? &ranges[low] : NULL;
}

/* The first new character at or after i, and its range; len when there is none. Most text has only ASCII or lead bytes
 * that begin no range of the table. */
static size_t next_new(const char *text, size_t len, size_t i, const range **found)
{
    while (i < len) {
        unsigned char lead = (unsigned char)text[i];
        size_t step = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;

        if (lead == 0xE1 || lead == 0xEA || step == 4) {
            *found = find(hr_utf8_decode(text + i, step));
            if (*found)
                return i;
        }
        i += step;
    }
    return len;
}

bool hr_replace_new_characters(const char *text, size_t len, hr_buffer *out)
{
    const range *found;
    size_t i = next_new(text, len, 0, &found);

    if (i == len)
        return false;
    hr_buffer_clear(out);
    hr_buffer_add(out, text, len);
    while (i < len && !out->failed) {
        size_t step = (unsigned char)text[i] < 0xF0 ? 3 : 4;

        for (size_t k = 0; k < step; k++)
            out->at[i + k] = stand_in[found->class][step][k];
        i = next_new(text, len, i + step, &found);
    }
    return true;
}
