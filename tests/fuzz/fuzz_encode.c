/* Any bytes as text for the embedded tokenizer: decoding gives the text back, with invalid bytes replaced, however it
 * is cut.
 *
 * The first byte chooses the flags and which ranges may hold special tokens, the second where the ranges end.
 */
#include "base/utf8.h"
#include "text/detokenize.h"
#include "text/tokenizer.h"

#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void add_clean(hr_buffer *out, const char *text, size_t len)
{
    for (size_t i = 0; i < len;) {
        bool is_valid;
        size_t step = hr_utf8_step(text + i, len - i, &is_valid);

        hr_buffer_add(out, is_valid ? text + i : "\xEF\xBF\xBD", is_valid ? step : 3);
        i += step;
    }
}

static void expect_text(const hr_tokenizer *tokenizer, const int32_t *ids, size_t n, const hr_buffer *expected)
{
    hr_detokenizer d;

    hr_detokenizer_init(&d, tokenizer, true, false, NULL, 0);
    for (size_t i = 0; i < n; i++)
        (void)hr_detokenizer_add(&d, ids[i], true);
    hr_detokenizer_finish(&d);
    HR_ASSERT(d.shown.len == expected->len);
    HR_ASSERT(expected->len == 0 || memcmp(d.shown.at, expected->at, expected->len) == 0);
    hr_detokenizer_deinit(&d);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static hr_tokenizer *tokenizer;
    const char *text = (const char *)data + 2;
    hr_text_range ranges[3];
    hr_buffer clean = {0};
    headrace_error err = {0};
    int32_t *ids;
    size_t n;

    if (!tokenizer && hr_tokenizer_open_json(HEADRACE_SOURCE_DIR "/csrc/embedded/tiny/tokenizer.json", 2048, &tokenizer,
                                             &err) != HEADRACE_OK) {
        (void)fprintf(stderr, "%s\n", err.message);
        abort();
    }
    if (size < 2)
        return 0;
    size -= 2;
    HR_ASSERT(hr_tokenizer_encode(tokenizer, text, size, data[0] & HEADRACE_ENCODE_SPECIAL, &ids, &n, &err) ==
              HEADRACE_OK);
    add_clean(&clean, text, size);
    expect_text(tokenizer, ids, n, &clean);
    free(ids);
    hr_buffer_clear(&clean);
    for (size_t i = 0, left = size; i < 3; i++) {
        size_t len = i == 2 || (data[1] >> 4 * i & 15u) > left ? left : (data[1] >> 4 * i & 15u);

        ranges[i] = (hr_text_range){.len = len, .parse_special = data[0] >> (i + 1) & 1};
        add_clean(&clean, text + (size - left), len);
        left -= len;
    }
    HR_ASSERT(hr_tokenizer_encode_ranges(tokenizer, text, ranges, 3, &ids, &n, &err) == HEADRACE_OK);
    expect_text(tokenizer, ids, n, &clean);
    free(ids);
    hr_buffer_deinit(&clean);
    return 0;
}
