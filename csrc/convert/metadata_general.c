/* general.*: what the model is called, where it comes from, how it likes to be sampled. See metadata.h.
 *
 * The model card's word comes first, then what its name says; a name is config.json's _name_or_path if that is a
 * model's and no path, else the folder's.
 */
#include "convert/metadata.h"

#include "base/file.h"
#include "convert/model_card.h"
#include "convert/model_id.h"

#include <limits.h>
#include <string.h>

enum { CARD_BYTES_MAX = 16 << 20 };

typedef struct general {
    const hr_metadata_source *source;
    const json_t *card;
    hr_model_id ids[2]; /* of _name_or_path (empty if it is none) and of the folder */
    hr_gguf_writer *writer;
    headrace_error *err;
} general;

static void put_text(const general *in, const char *key, const char *text)
{
    hr_gguf_put_string(in->writer, key, text, strlen(text));
}

/* ---------------------------------------------------------------- generation_config.json */

static headrace_status put_sampling(const general *in)
{
    static const struct {
        const char *field, *other, *key;
        bool is_integer;
    } values[] = {
        {"top_k", NULL, "top_k", true},
        {"top_p", NULL, "top_p", false},
        {"min_p", NULL, "min_p", false},
        {"temperature", NULL, "temp", false},
        {"penalty_last_n", NULL, "penalty_last_n", true},
        {"penalty_repeat", "repetition_penalty", "penalty_repeat", false},
    };
    json_t *config;
    char key[64];

    HR_PASS(hr_metadata_read_json(in->source->model->path, "generation_config.json", &config, in->err));
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        const json_t *value = json_object_get(config, values[i].field);

        if (!value && values[i].other)
            value = json_object_get(config, values[i].other);
        (void)snprintf(key, sizeof key, "general.sampling.%s", values[i].key);
        if (values[i].is_integer && json_is_integer(value))
            hr_gguf_put_i32(in->writer, key, (int32_t)json_integer_value(value));
        else if (!values[i].is_integer && json_is_number(value))
            hr_gguf_put_f32(in->writer, key, (float)json_number_value(value));
    }
    json_decref(config);
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- name and parts */

/* The first of these names that the card has, as text; NULL: none. */
static const char *from_card(const general *in, const char *const *names)
{
    const char *text = NULL;

    for (; *names && !text; names++)
        text = json_string_value(json_object_get(in->card, *names));
    return text;
}

static void put_name(const general *in)
{
    const char *const names[] = {"name", "model_name", NULL};
    const char *text = from_card(in, names);
    char title[HR_MODEL_ID_MAX];

    if (!text) {
        hr_model_id_title(in->ids[0].name[0] ? in->ids[0].name : in->ids[1].name, title);
        text = title[0] ? title : in->source->model->name;
    }
    put_text(in, "general.name", text);
}

/* offset: of the part in hr_model_id. */
static void put_part(const general *in, const char *key, const char *const *card_names, size_t offset)
{
    const char *text = from_card(in, card_names);

    for (size_t i = 0; i < 2 && !text; i++) {
        const char *part = (const char *)&in->ids[i] + offset;

        text = part[0] ? part : NULL;
    }
    if (text)
        put_text(in, key, text);
}

static void put_parts(const general *in)
{
    static const char *const version[] = {"version", "model_version", NULL};
    static const char *const finetune[] = {"finetune", "model_finetune", NULL};
    static const char *const basename[] = {"basename", "model_basename", "model_type", NULL};
    static const char *const organization[] = {"organization", "model_organization", NULL};
    char title[HR_MODEL_ID_MAX];
    const char *text = from_card(in, organization);

    put_part(in, "general.version", version, offsetof(hr_model_id, version));
    for (size_t i = 0; i < 2 && !text; i++) {
        hr_model_id_title(in->ids[i].organization, title);
        text = title[0] ? title : NULL;
    }
    if (text)
        put_text(in, "general.organization", text);
    put_part(in, "general.finetune", finetune, offsetof(hr_model_id, finetune));
    put_part(in, "general.basename", basename, offsetof(hr_model_id, basename));
}

/* "1.2B", or "32x0.4B": experts times what one of each stack and all the rest have. */
static void put_size_label(const general *in)
{
    static const char *const names[] = {"size_label", "model_size_label", NULL};
    const hr_plan *plan = in->source->plan;
    uint32_t n_experts = in->source->model->arch.n_experts;
    const char *text = from_card(in, names);
    char size[32], label[64];

    for (size_t i = 0; i < 2 && !text; i++)
        text = in->ids[i].size_label[0] ? in->ids[i].size_label : NULL;
    if (!text) {
        hr_model_size_text(n_experts > 0 ? plan->n_shared : plan->n_parameters, size);
        if (n_experts > 0)
            (void)snprintf(label, sizeof label, "%ux%s", n_experts, size);
        else
            (void)snprintf(label, sizeof label, "%s", size);
        text = label;
    }
    put_text(in, "general.size_label", text);
}

/* ---------------------------------------------------------------- the rest of the card */

static void put_card_texts(const general *in)
{
    static const char *const texts[][4] = {
        {"general.author", "author", "model_author", "model_creator"},
        {"general.description", "description", "model_description", NULL},
        {"general.license", "license", NULL, NULL},
        {"general.license.name", "license_name", NULL, NULL},
        {"general.license.link", "license_link", NULL, NULL},
        {"general.source.url", "url", "model_url", NULL},
        {"general.source.doi", "doi", "model_doi", NULL},
        {"general.source.uuid", "uuid", "model_uuid", NULL},
        {"general.source.repo_url", "repo_url", "model_repo_url", NULL},
    };

    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        const char *const names[] = {texts[i][1], texts[i][2], texts[i][2] ? texts[i][3] : NULL, NULL};
        const char *text = from_card(in, names);

        if (text)
            put_text(in, texts[i][0], text);
    }
}

/* Item i of a value that is one text or a list of them; NULL behind the last. */
static const char *item_at(const json_t *value, size_t i)
{
    return json_is_string(value) ? (i == 0 ? json_string_value(value) : NULL)
                                 : json_string_value(json_array_get(value, i));
}

static size_t count_items(const json_t *value)
{
    return json_is_string(value) ? 1 : json_array_size(value);
}

/* Two fields of the card as one array of texts. */
static void put_list(const general *in, const char *key, const char *first, const char *second)
{
    const json_t *values[2] = {json_object_get(in->card, first), json_object_get(in->card, second)};
    size_t n = count_items(values[0]) + count_items(values[1]);

    if (n == 0)
        return;
    hr_gguf_put_strings(in->writer, key, n);
    for (size_t v = 0; v < 2; v++)
        for (size_t i = 0; i < count_items(values[v]); i++) {
            const char *text = item_at(values[v], i);

            hr_gguf_put_element(in->writer, text, strlen(text));
        }
}

/* One model or data set that this one was made from. */
static headrace_status put_origin(const general *in, const char *prefix, size_t i, const char *text)
{
    static const char host[] = "https://huggingface.co/";
    bool is_url = strstr(text, "://") != NULL, is_hub = strncmp(text, host, sizeof host - 1) == 0;
    const char *name = is_hub ? text + sizeof host - 1 : is_url ? NULL : text;
    char key[96], title[HR_MODEL_ID_MAX], url[2 * HR_MODEL_ID_MAX];
    hr_model_id id = {0};

    if (name && !(is_hub && (!strchr(name, '/') || strchr(strchr(name, '/') + 1, '/')))) {
        HR_PASS(hr_model_id_parse(name, in->source->plan->n_parameters, &id, in->err));
        hr_model_id_title(id.name, title);
        (void)snprintf(key, sizeof key, "%s.%zu.name", prefix, i);
        put_text(in, key, title);
    }
    if (id.version[0]) {
        (void)snprintf(key, sizeof key, "%s.%zu.version", prefix, i);
        put_text(in, key, id.version);
    }
    if (id.organization[0]) {
        (void)snprintf(key, sizeof key, "%s.%zu.organization", prefix, i);
        hr_model_id_title(id.organization, title);
        put_text(in, key, title);
        (void)snprintf(url, sizeof url, "%s%s/%s", host, id.organization, id.name);
    }
    if (is_url || id.organization[0]) {
        (void)snprintf(key, sizeof key, "%s.%zu.repo_url", prefix, i);
        put_text(in, key, is_url ? text : url);
    }
    return HEADRACE_OK;
}

static headrace_status put_origins(const general *in, const char *prefix, const char *const *names)
{
    const json_t *value = NULL;
    char key[64];

    for (; *names && !value; names++)
        value = json_object_get(in->card, *names);
    if (count_items(value) == 0)
        return HEADRACE_OK;
    (void)snprintf(key, sizeof key, "%s.count", prefix);
    hr_gguf_put_u32(in->writer, key, (uint32_t)count_items(value));
    for (size_t i = 0; i < count_items(value); i++)
        HR_PASS(put_origin(in, prefix, i, item_at(value, i)));
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- together */

/* The Hub's cache keeps a model in models--ORG--NAME/snapshots/COMMIT: then the model's id is ORG/NAME, in out. */
static bool is_in_hub_cache(const char *path, char out[HR_MODEL_ID_MAX])
{
    char real[PATH_MAX], *snapshots, *models, *dashes;

    snapshots = realpath(path, real) ? strstr(real, "/snapshots/") : NULL;
    if (!snapshots)
        return false;
    *snapshots = '\0';
    models = strrchr(real, '/');
    if (!models || strncmp(models + 1, "models--", 8) != 0)
        return false;
    dashes = strstr(models + 9, "--");
    (void)snprintf(out, HR_MODEL_ID_MAX, "%.*s%s%s", dashes ? (int)(dashes - (models + 9)) : 0, models + 9,
                   dashes ? "/" : "", dashes ? dashes + 2 : models + 9);
    return true;
}

static headrace_status read_ids(general *in, const json_t *config)
{
    const char *given = json_string_value(json_object_get(config, "_name_or_path"));
    const char *slash = given ? strchr(given, '/') : NULL;
    uint64_t n = in->source->plan->n_parameters;
    char hub[HR_MODEL_ID_MAX];

    if (given && given[0] && !(slash && strchr(slash + 1, '/')))
        HR_PASS(hr_model_id_parse(given, n, &in->ids[0], in->err));
    return hr_model_id_parse(is_in_hub_cache(in->source->model->path, hub) ? hub : in->source->model->name, n,
                             &in->ids[1], in->err);
}

static headrace_status read_card(const char *folder, json_t **card, headrace_error *err)
{
    char path[PATH_MAX];
    char *text = NULL;
    size_t len = 0;

    (void)snprintf(path, sizeof path, "%s/README.md", folder);
    if (hr_file_exists(path))
        HR_PASS(hr_file_read(path, CARD_BYTES_MAX, &text, &len, err));
    *card = hr_model_card_parse(text ? text : "", len);
    free(text);
    return *card ? HEADRACE_OK : hr_fail(err, HEADRACE_E_MEMORY, "%s: no memory for its head", path);
}

headrace_status hr_metadata_put_general(const hr_metadata_source *source, const json_t *config, hr_gguf_writer *writer,
                                        headrace_error *err)
{
    static const char *const bases[] = {"base_model", "base_models", "base_model_sources", NULL};
    static const char *const sets[] = {"datasets", "dataset", "dataset_sources", NULL};
    general in = {.source = source, .writer = writer, .err = err};
    json_t *card;
    headrace_status status;

    HR_PASS(read_card(source->model->path, &card, err));
    in.card = card;
    HR_TRY_GOTO(done, read_ids(&in, config));
    HR_TRY_GOTO(done, put_sampling(&in));
    put_name(&in);
    put_parts(&in);
    put_size_label(&in);
    put_card_texts(&in);
    HR_TRY_GOTO(done, put_origins(&in, "general.base_model", bases));
    HR_TRY_GOTO(done, put_origins(&in, "general.dataset", sets));
    put_list(&in, "general.tags", "tags", "pipeline_tag");
    put_list(&in, "general.languages", "languages", "language");
done:
    json_decref(card);
    return status;
}
