/* config.json: any text is read or refused, and what is read makes sense. */
#include "model/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    hr_config config;
    headrace_error err;
    uint64_t total, active;

    if (hr_config_from_json((const char *)bytes, len, "fuzz", &config, &err) != HEADRACE_OK ||
        hr_config_finish(&config, "fuzz", &err) != HEADRACE_OK)
        return 0;
    HR_ASSERT(config.arch.n_layers == config.arch.n_attention_layers + config.arch.n_conv_layers);
    HR_ASSERT(config.arch.n_heads % config.arch.n_kv_heads == 0 && config.arch.ffn_dim > 0);
    HR_ASSERT(config.arch.n_experts_used <= config.arch.n_experts);
    hr_arch_count_parameters(&config.arch, config.is_tied, config.conv_bias, &total, &active);
    HR_ASSERT(active <= total);
    return 0;
}
