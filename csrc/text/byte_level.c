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

/* The character that spells a byte: the inverse of byte_of. */
static uint32_t character_of(unsigned byte)
{
    if (byte < 33)
        return 0x100 + byte;
    if (byte >= 127 && byte <= 160)
        return 0x100 + byte - 94;
    return byte == 173 ? 0x143 : byte;
}

size_t hr_byte_level_encode(const char *bytes, size_t len, char *out)
{
    size_t n = 0;

    for (size_t i = 0; i < len; i++) {
        uint32_t c = character_of((unsigned char)bytes[i]);

        if (c < 0x80) {
            out[n++] = (char)c;
        } else { /* two bytes: no character of the alphabet is above U+0143 */
            out[n++] = (char)(0xC0 | c >> 6);
            out[n++] = (char)(0x80 | (c & 0x3F));
        }
    }
    return n;
}
