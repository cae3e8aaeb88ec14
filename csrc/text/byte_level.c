/* See byte_level.h.
 *
 * The alphabet comes from GPT-2: a byte that is a printable Latin-1 character (33 .. 126, 161 .. 172, 174 .. 255) is
 * spelled as that character; the other 68, in increasing order, as U+0100, U+0101, ... Vocabularies are stored so that
 * their files are readable text; inside the engine tokens are plain bytes, and this is the only place that knows the
 * spelling.
 */
#include "text/byte_level.h"

#include "base/utf8.h"

/* The byte a character stands for, or -1. */
static int byte_of(uint32_t c)
{
    if ((c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255))
        return (int)c;
    if (c < 0x100 || c > 0x143)
        return -1;
    c -= 0x100;
    if (c < 33) /* 0 .. 32 */
        return (int)c;
    return c < 67 ? (int)(c + 94) : 173; /* 127 .. 160, then 173 alone */
}

bool hr_byte_level_decode(const char *spelling, size_t len, char *out, size_t *out_len)
{
    size_t n = 0;

    for (size_t i = 0; i < len;) {
        bool is_valid;
        size_t step = hr_utf8_step(spelling + i, len - i, &is_valid);
        int byte = is_valid ? byte_of(hr_utf8_decode(spelling + i, step)) : -1;

        if (byte < 0)
            return false;
        out[n++] = (char)byte; /* n <= i: writing over the spelling is safe */
        i += step;
    }
    *out_len = n;
    return true;
}
