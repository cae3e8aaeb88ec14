/* See utf8.h. Table 3-7 of the Unicode standard: the second byte's range depends on the first, later ones are 80..BF.
 */
#include "base/utf8.h"

static size_t expected_length(unsigned char first, unsigned char *low, unsigned char *high)
{
    *low = 0x80;
    *high = 0xBF;
    if (first < 0x80)
        return 1;
    if (first >= 0xC2 && first <= 0xDF)
        return 2;
    if (first >= 0xE0 && first <= 0xEF) {
        if (first == 0xE0)
            *low = 0xA0; /* shorter forms */
        if (first == 0xED)
            *high = 0x9F; /* surrogates */
        return 3;
    }
    if (first >= 0xF0 && first <= 0xF4) {
        if (first == 0xF0)
            *low = 0x90;
        if (first == 0xF4)
            *high = 0x8F; /* beyond U+10FFFF */
        return 4;
    }
    return 0;
}

/* Length of the well-formed prefix of one character; *n_expected is 0 for a byte that cannot begin one. */
static size_t well_formed_prefix(const char *text, size_t len, size_t *n_expected)
{
    unsigned char low, high;
    size_t n;

    *n_expected = expected_length((unsigned char)text[0], &low, &high);
    for (n = 1; n < *n_expected && n < len; n++) {
        unsigned char c = (unsigned char)text[n];

        if (c < low || c > high)
            break;
        low = 0x80;
        high = 0xBF;
    }
    return n;
}

size_t hr_utf8_step(const char *text, size_t len, bool *is_valid)
{
    size_t n_expected, n = well_formed_prefix(text, len, &n_expected);

    *is_valid = n == n_expected;
    return n;
}

bool hr_utf8_is_valid(const char *text, size_t len, size_t *bad_offset)
{
    for (size_t i = 0; i < len;) {
        bool is_valid;
        size_t step = hr_utf8_step(text + i, len - i, &is_valid);

        if (!is_valid) {
            if (bad_offset)
                *bad_offset = i;
            return false;
        }
        i += step;
    }
    return true;
}

size_t hr_utf8_unfinished(const char *text, size_t len)
{
    for (size_t back = 1; back <= 3 && back <= len; back++) {
        unsigned char c = (unsigned char)text[len - back];
        size_t n_expected;

        if (c >= 0x80 && c < 0xC0)
            continue; /* a continuation byte: look further back */
        if (c < 0x80)
            return 0;
        return well_formed_prefix(text + len - back, back, &n_expected) == back && back < n_expected ? back : 0;
    }
    return 0;
}

uint32_t hr_utf8_decode(const char *text, size_t step)
{
    const unsigned char *at = (const unsigned char *)text;

    switch (step) {
    case 1:
        return at[0];
    case 2:
        return (uint32_t)(at[0] & 0x1F) << 6 | (at[1] & 0x3F);
    case 3:
        return (uint32_t)(at[0] & 0x0F) << 12 | (uint32_t)(at[1] & 0x3F) << 6 | (at[2] & 0x3F);
    default:
        return (uint32_t)(at[0] & 0x07) << 18 | (uint32_t)(at[1] & 0x3F) << 12 | (uint32_t)(at[2] & 0x3F) << 6 |
               (at[3] & 0x3F);
    }
}

size_t hr_utf8_encode(uint32_t c, char out[4])
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3F));
        out[2] = (char)(0x80 | (c & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3F));
    out[2] = (char)(0x80 | (c >> 6 & 0x3F));
    out[3] = (char)(0x80 | (c & 0x3F));
    return 4;
}
