/* Which sampling values a checkpoint recommends.
 *
 * The family's generation_config.json holds ids only, so a server that trusts it alone samples at temperature 1, far
 * from what the model cards recommend. Where no file states values, the cards' do, by family; the source is always
 * named, so that a user sees why.
 */
#include "model/config.h"

#include <ctype.h>
#include <jansson.h>
#include <math.h>
#include <string.h>

enum { FILE_BYTES_MAX = 1 << 20 };

hr_sampling_hint hr_no_sampling(void)
{
    return (hr_sampling_hint){.temperature = NAN, .top_p = NAN, .min_p = NAN, .repetition_penalty = NAN, .top_k = -1};
}

/* ---------------------------------------------------------------- generation_config.json */

static headrace_status read_value(const json_t *root, const char *path, const char *name, double min, double max,
                                  float *out, bool *found, headrace_error *err)
{
    const json_t *value = json_object_get(root, name);

    if (!value || json_is_null(value))
        return HEADRACE_OK;
    if (!json_is_number(value))
        return hr_fail(err, HEADRACE_E_MODEL, "%s: field '%s' is no number", path, name);
    if (!(json_number_value(value) >= min && json_number_value(value) <= max))
        return hr_fail(err, HEADRACE_E_MODEL, "%s: field '%s' is %g, expected %g to %g", path, name,
                       json_number_value(value), min, max);
    *out = (float)json_number_value(value);
    *found = true;
    return HEADRACE_OK;
}

static headrace_status read_end_ids(const json_t *root, const char *path, hr_arch *arch, headrace_error *err)
{
    const json_t *eos = json_object_get(root, "eos_token_id");
    size_t n = json_is_array(eos) ? json_array_size(eos) : eos && !json_is_null(eos) ? 1 : 0;

    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(eos) ? json_array_get(eos, i) : eos;

        if (!json_is_integer(id))
            return hr_fail(err, HEADRACE_E_MODEL, "%s: field 'eos_token_id': expected a number or a list of numbers",
                           path);
        HR_PASS(hr_arch_add_eos(arch, json_integer_value(id), path, err));
    }
    return HEADRACE_OK;
}

static headrace_status read_generation(const json_t *root, const char *path, hr_arch *arch, hr_sampling_hint *hint,
                                       headrace_error *err)
{
    bool found = false;
    float top_k = -1.0F;

    if (!json_is_object(root))
        return hr_fail(err, HEADRACE_E_MODEL, "%s: expected a JSON object", path);
    HR_PASS(read_end_ids(root, path, arch, err));
    HR_PASS(read_value(root, path, "temperature", 0.0, 100.0, &hint->temperature, &found, err));
    HR_PASS(read_value(root, path, "top_p", 0.0, 1.0, &hint->top_p, &found, err));
    HR_PASS(read_value(root, path, "min_p", 0.0, 1.0, &hint->min_p, &found, err));
    HR_PASS(read_value(root, path, "repetition_penalty", 1e-3, 1e3, &hint->repetition_penalty, &found, err));
    HR_PASS(read_value(root, path, "top_k", 0.0, HR_VOCAB_MAX, &top_k, &found, err));
    hint->top_k = (int32_t)top_k;
    if (found)
        hint->source = "generation_config.json";
    return HEADRACE_OK;
}

headrace_status hr_generation_config_read(const char *path, hr_arch *arch, hr_sampling_hint *hint, headrace_error *err)
{
    char *text;
    size_t len;
    json_t *root;
    json_error_t where;
    headrace_status status;

    *hint = hr_no_sampling();
    if (!hr_file_exists(path))
        return HEADRACE_OK;
    HR_PASS(hr_file_read(path, FILE_BYTES_MAX, &text, &len, err));
    root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &where);
    free(text);
    if (!root)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: byte %d: not valid JSON: %s", path, where.position, where.text);
    status = read_generation(root, path, arch, hint, err);
    json_decref(root);
    return status;
}

/* ---------------------------------------------------------------- GGUF */

headrace_status hr_gguf_sampling_read(const hr_gguf *gguf, hr_sampling_hint *hint, headrace_error *err)
{
    uint32_t top_k;
    const struct {
        const char *key;
        float min, max;
        float *out;
    } reals[] = {
        {"general.sampling.temp", 0.0F, 100.0F, &hint->temperature},
        {"general.sampling.top_p", 0.0F, 1.0F, &hint->top_p},
        {"general.sampling.min_p", 0.0F, 1.0F, &hint->min_p},
        {"general.sampling.penalty_repeat", 1e-3F, 1e3F, &hint->repetition_penalty},
    };

    *hint = hr_no_sampling();
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++) {
        if (!hr_gguf_find(gguf, reals[i].key))
            continue;
        HR_PASS(hr_gguf_f32(gguf, reals[i].key, reals[i].out, err));
        if (!(*reals[i].out >= reals[i].min && *reals[i].out <= reals[i].max))
            return hr_fail(err, HEADRACE_E_MODEL, "%s: key '%s' is %g, expected %g to %g", gguf->file.paths[0],
                           reals[i].key, (double)*reals[i].out, (double)reals[i].min, (double)reals[i].max);
        hint->source = "gguf";
    }
    if (hr_gguf_find(gguf, "general.sampling.top_k")) {
        HR_PASS(hr_gguf_u32(gguf, "general.sampling.top_k", &top_k, err));
        if (top_k > HR_VOCAB_MAX)
            return hr_fail(err, HEADRACE_E_MODEL, "%s: key 'general.sampling.top_k' is %u, expected 0 to %d",
                           gguf->file.paths[0], top_k, HR_VOCAB_MAX);
        hint->top_k = (int32_t)top_k;
        hint->source = "gguf";
    }
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- model cards */

static const hr_sampling_hint card_lfm2 = {.temperature = 0.3F,
                                           .top_p = NAN,
                                           .min_p = 0.15F,
                                           .repetition_penalty = 1.05F,
                                           .top_k = -1,
                                           .source = "model card: LFM2"};
static const hr_sampling_hint card_lfm2_24b = {.temperature = 0.1F,
                                               .top_p = NAN,
                                               .min_p = NAN,
                                               .repetition_penalty = 1.05F,
                                               .top_k = 50,
                                               .source = "model card: LFM2-24B-A2B"};
static const hr_sampling_hint card_lfm25 = {.temperature = 0.1F,
                                            .top_p = 0.1F,
                                            .min_p = NAN,
                                            .repetition_penalty = 1.05F,
                                            .top_k = 50,
                                            .source = "model card: LFM2.5"};
static const hr_sampling_hint card_lfm25_8b = {.temperature = 0.2F,
                                               .top_p = NAN,
                                               .min_p = NAN,
                                               .repetition_penalty = 1.05F,
                                               .top_k = 80,
                                               .source = "model card: LFM2.5-8B-A1B"};

/* The last place in text, ignoring case, where family stands ("lfm2.5"; '.' also matches '-' and '_'). NULL: nowhere.
 */
static const char *find_family(const char *text, const char *family)
{
    size_t n = strlen(family);
    const char *found = NULL;

    for (; *text; text++) {
        size_t i = 0;

        while (
            i < n && text[i] &&
            (tolower((unsigned char)text[i]) == family[i] || (family[i] == '.' && (text[i] == '-' || text[i] == '_'))))
            i++;
        if (i == n)
            found = text;
    }
    return found;
}

/* Whether text names LFM2.5 (1), LFM2 (0) or neither (-1). The last mention counts: a Hub cache keeps the name in the
 * middle of the path, and the folders above it may hold anything. "LFM2-5" must not be read out of "LFM2-500M". */
static int family_of(const char *text)
{
    const char *plain = text ? find_family(text, "lfm2") : NULL;

    if (!plain)
        return -1;
    return find_family(plain, "lfm2.5") == plain && !isdigit((unsigned char)plain[6]);
}

hr_sampling_hint hr_card_sampling(const hr_arch *arch, const char *path, const char *name)
{
    int family = family_of(name);
    bool is_moe = arch->n_experts > 0;

    if (family < 0)
        family = family_of(path);
    if (is_moe && arch->n_experts == 64 && arch->n_layers == 40)
        return card_lfm2_24b;
    if (is_moe && (family == 1 || arch->vocab_size > 100000)) /* only LFM2.5 has the larger vocabulary */
        return card_lfm25_8b;
    return family == 1 ? card_lfm25 : card_lfm2;
}
