/* GGUF files: any bytes are read or refused; what is read is turned into a configuration and bound to roles. */
#include "model/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void walk(const hr_gguf *gguf)
{
    volatile int64_t sum = 0;

    for (uint32_t i = 0; i < gguf->n_entries; i++) {
        const hr_gguf_value *value = &gguf->entries[i].value;
        const unsigned char *cursor = value->at;

        for (uint64_t j = 0; value->type == HR_GGUF_ARRAY && j < value->n_elements; j++) {
            if (value->element_type == HR_GGUF_STRING)
                sum += (int64_t)hr_gguf_next_string(&cursor).len;
            else
                sum += hr_gguf_int_at(value, j);
        }
    }
    (void)sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    hr_model model = {.format = HR_MODEL_GGUF, .path = "fuzz"};
    hr_config config;
    hr_sampling_hint hint;
    headrace_error err;

    if (hr_gguf_parse(bytes, len, "fuzz", &model.gguf, &err) != HEADRACE_OK)
        return 0;
    walk(&model.gguf);
    (void)hr_gguf_sampling_read(&model.gguf, &hint, &err);
    if (hr_config_from_gguf(&model.gguf, &config, &err) == HEADRACE_OK &&
        hr_config_finish(&config, "fuzz", &err) == HEADRACE_OK) {
        model.file = &model.gguf.file;
        model.arch = config.arch;
        (void)hr_model_bind(&model, &config, &err);
    }
    hr_arena_deinit(&model.arena);
    hr_gguf_close(&model.gguf);
    return 0;
}
