/* The embedded model's tokenizer, and ids of single bytes, for tests of this room. */
#ifndef HR_TESTS_TINY_TOKENIZER_H
#define HR_TESTS_TINY_TOKENIZER_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "text/tokenizer.h"

#include <string.h>

#define TINY_PATH HEADRACE_SOURCE_DIR "/csrc/embedded/tiny/tokenizer.json"
enum { TINY_SIZE = 2048 };

static inline hr_tokenizer *open_tiny(void)
{
    headrace_error err = {0};
    hr_tokenizer *tokenizer = NULL;

    if (hr_tokenizer_open_json(TINY_PATH, TINY_SIZE, &tokenizer, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    return tokenizer;
}

/* The id of the ordinary token that is exactly this byte. */
static inline int32_t byte_id(const hr_tokenizer *tokenizer, char byte)
{
    for (int32_t id = 0; id < (int32_t)hr_tokenizer_size(tokenizer); id++) {
        const char *bytes;
        size_t len;
        bool is_special;

        if (hr_tokenizer_bytes(tokenizer, id, &bytes, &len, &is_special) && len == 1 && bytes[0] == byte && !is_special)
            return id;
    }
    fail_msg("no token for byte 0x%02X", (unsigned char)byte);
    return -1;
}

#endif
