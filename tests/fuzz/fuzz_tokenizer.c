/* Any bytes as a tokenizer.json, or as GGUF metadata when they begin like one; what is accepted must be able to encode.
 */
#include "text/detokenize.h"
#include "text/tokenizer.h"

#include <stdint.h>
#include <string.h>

enum { ROWS = 4096 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(const hr_tokenizer *tokenizer)
{
    static const char text[] = "ab abc <|im_end|> wor ld word don't 12345 \xF0\x9F\x98\x80\n\n  x";
    const char *const stop[] = {"wo", "x"};
    hr_detokenizer d;
    int32_t *ids;
    size_t n;

    for (uint32_t flags = 0; flags < 4; flags++) {
        if (hr_tokenizer_encode(tokenizer, text, strlen(text), flags, &ids, &n, NULL) != HEADRACE_OK)
            continue; /* the splitting expression may give up */
        hr_detokenizer_init(&d, tokenizer, flags & 1, false, stop, flags & 2 ? 2 : 0);
        for (size_t i = 0; i < n && !hr_detokenizer_add(&d, ids[i], i > 3); i++)
            HR_ASSERT(ids[i] >= 0 && (uint32_t)ids[i] < hr_tokenizer_size(tokenizer));
        if (d.stop_hit < 0)
            hr_detokenizer_finish(&d);
        hr_detokenizer_deinit(&d);
        free(ids);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    hr_tokenizer *tokenizer = NULL;
    headrace_error err;

    if (size >= 4 && memcmp(data, "GGUF", 4) == 0) {
        hr_gguf gguf;

        if (hr_gguf_parse(data, size, "fuzz.gguf", &gguf, &err) != HEADRACE_OK)
            return 0;
        (void)hr_tokenizer_open_gguf(&gguf, ROWS, &tokenizer, &err);
        hr_gguf_close(&gguf);
    } else {
        (void)hr_tokenizer_parse_json((const char *)data, size, "fuzz.json", ROWS, &tokenizer, &err);
    }
    if (tokenizer)
        use(tokenizer);
    hr_tokenizer_close(tokenizer);
    return 0;
}
