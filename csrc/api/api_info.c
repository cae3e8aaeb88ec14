/* Facts about the build and about an open model. */
#include "api/api.h"

#include "backend/cpu/cpu_kernels.h"
#include "base/buffer.h"
#include "base/file.h"

#include <inttypes.h>
#include <string.h>

enum { ARRAY_SHOWN_MAX = 16 };

const char *headrace_version(void)
{
    return HEADRACE_VERSION;
}

void headrace_free(void *memory)
{
    free(memory);
}

static char build_info[256]; /* written once */

static void write_build_info(void)
{
    const hr_cpu_kernels *kernels;
    bool is_usable;
    size_t at;

#if defined(__clang__)
    at = (size_t)snprintf(build_info, sizeof build_info, "headrace %s, clang %s, cpu:", HEADRACE_VERSION,
                          __clang_version__);
#else
    at = (size_t)snprintf(build_info, sizeof build_info, "headrace %s, gcc %s, cpu:", HEADRACE_VERSION, __VERSION__);
#endif
    for (uint32_t i = 0; (kernels = hr_cpu_kernels_at(i, &is_usable)) != NULL && at < sizeof build_info; i++)
        if (is_usable)
            at += (size_t)snprintf(build_info + at, sizeof build_info - at, " %s", kernels->name);
}

const char *headrace_build_info(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    (void)pthread_once(&once, write_build_info);
    return build_info;
}

void headrace_model_get_info(const headrace_model *model, headrace_model_info *out)
{
    const hr_model *network = model->network;
    const hr_arch *arch = &network->arch;

    *out = (headrace_model_info){
        .name = network->name,
        .architecture = arch->name,
        .format = network->format == HR_MODEL_GGUF ? "gguf" : "safetensors",
        .weight_dtypes = model->weight_dtypes,
        .n_parameters = network->n_parameters,
        .n_parameters_active = network->n_parameters_active,
        .weight_bytes = network->file ? network->file->weight_bytes : 0,
        .n_layers = arch->n_layers,
        .n_attention_layers = arch->n_attention_layers,
        .n_conv_layers = arch->n_conv_layers,
        .hidden_size = arch->hidden_size,
        .vocab_size = arch->vocab_size,
        .n_heads = arch->n_heads,
        .n_kv_heads = arch->n_kv_heads,
        .head_dim = arch->head_dim,
        .conv_length = arch->conv_length,
        .n_experts = arch->n_experts,
        .n_experts_used = arch->n_experts_used,
        .max_positions = arch->max_positions,
        .bos_id = arch->bos_id,
        .n_eos_ids = arch->n_eos_ids,
        .tokenizer_size = model->tokenizer ? hr_tokenizer_size(model->tokenizer) : 0,
        .chat_template_name = model->chat_template_name,
        .sampling_source = network->sampling.source,
    };
    for (uint32_t i = 0; i < arch->n_eos_ids; i++)
        out->eos_ids[i] = arch->eos_ids[i];
}

/* ---------------------------------------------------------------- describe */

static void add_text(hr_buffer *json, const char *text)
{
    if (text)
        hr_json_string(json, text, strlen(text));
    else
        hr_buffer_add_text(json, "null");
}

static void add_info(hr_buffer *json, const headrace_model *model)
{
    headrace_model_info info;

    headrace_model_get_info(model, &info);
    hr_buffer_add_text(json, "{\"name\":");
    add_text(json, info.name);
    hr_buffer_printf(json, ",\"architecture\":\"%s\",\"format\":\"%s\",\"weight_dtypes\":\"%s\"", info.architecture,
                     info.format, info.weight_dtypes);
    hr_buffer_printf(json,
                     ",\"n_parameters\":%" PRIu64 ",\"n_parameters_active\":%" PRIu64 ",\"weight_bytes\":%" PRIu64,
                     info.n_parameters, info.n_parameters_active, info.weight_bytes);
    hr_buffer_printf(json, ",\"n_layers\":%u,\"n_attention_layers\":%u,\"n_conv_layers\":%u,\"hidden_size\":%u",
                     info.n_layers, info.n_attention_layers, info.n_conv_layers, info.hidden_size);
    hr_buffer_printf(json, ",\"vocab_size\":%u,\"n_heads\":%u,\"n_kv_heads\":%u,\"head_dim\":%u,\"conv_length\":%u",
                     info.vocab_size, info.n_heads, info.n_kv_heads, info.head_dim, info.conv_length);
    hr_buffer_printf(json, ",\"n_experts\":%u,\"n_experts_used\":%u,\"max_positions\":%u,\"bos_id\":%d", info.n_experts,
                     info.n_experts_used, info.max_positions, info.bos_id);
    hr_buffer_add_text(json, ",\"eos_ids\":[");
    for (uint32_t i = 0; i < info.n_eos_ids; i++)
        hr_buffer_printf(json, "%s%d", i > 0 ? "," : "", info.eos_ids[i]);
    hr_buffer_printf(json, "],\"tokenizer_size\":%u,\"chat_template\":", info.tokenizer_size);
    add_text(json, info.chat_template_name);
    hr_buffer_add_text(json, ",\"sampling_source\":");
    add_text(json, info.sampling_source);
    hr_buffer_add_char(json, '}');
}

static uint64_t little_endian(const unsigned char *at, uint32_t n)
{
    uint64_t value = 0;

    memcpy(&value, at, n);
    return value;
}

/* One scalar; returns its size in bytes, 0 for types that are no scalars. */
static uint32_t add_scalar(hr_buffer *json, hr_gguf_type type, const unsigned char *at)
{
    static const uint32_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    uint32_t size = (uint32_t)type < sizeof sizes / sizeof *sizes ? sizes[type] : 0;
    uint64_t bits = size > 0 ? little_endian(at, size) : 0;
    uint32_t unused = size > 0 ? 64 - 8 * size : 0;
    double real;
    float narrow;

    switch (type) {
    case HR_GGUF_I8:
    case HR_GGUF_I16:
    case HR_GGUF_I32:
    case HR_GGUF_I64:
        hr_json_int(json, (int64_t)(bits << unused) >> unused);
        break;
    case HR_GGUF_F32:
        memcpy(&narrow, at, sizeof narrow);
        hr_json_float(json, narrow);
        break;
    case HR_GGUF_F64:
        memcpy(&real, at, sizeof real);
        hr_json_double(json, real);
        break;
    case HR_GGUF_BOOL:
        hr_buffer_add_text(json, bits ? "true" : "false");
        break;
    case HR_GGUF_STRING:
    case HR_GGUF_ARRAY:
        break;
    default:
        hr_json_uint(json, bits);
    }
    return size;
}

/* Arrays longer than a line (vocabularies) are told by their length and first elements. */
static void add_array(hr_buffer *json, const hr_gguf_value *value)
{
    uint64_t shown = value->n_elements < ARRAY_SHOWN_MAX ? value->n_elements : ARRAY_SHOWN_MAX;
    const unsigned char *at = value->at;

    hr_buffer_printf(json, "{\"n_elements\":%" PRIu64 ",\"first\":[", value->n_elements);
    for (uint64_t i = 0; i < shown && value->element_type != HR_GGUF_ARRAY; i++) {
        if (i > 0)
            hr_buffer_add_char(json, ',');
        if (value->element_type == HR_GGUF_STRING) {
            hr_gguf_string text = hr_gguf_next_string(&at);

            hr_json_string(json, text.at, (size_t)text.len);
        } else {
            at += add_scalar(json, value->element_type, at);
        }
    }
    hr_buffer_add_text(json, "]}");
}

static void add_gguf_metadata(hr_buffer *json, const hr_gguf *gguf)
{
    for (uint32_t i = 0; i < gguf->n_entries; i++) {
        const hr_gguf_entry *entry = &gguf->entries[i];

        if (i > 0)
            hr_buffer_add_char(json, ',');
        hr_json_string(json, entry->key.at, (size_t)entry->key.len);
        hr_buffer_add_char(json, ':');
        if (entry->value.type == HR_GGUF_ARRAY) {
            add_array(json, &entry->value);
        } else if (entry->value.type == HR_GGUF_STRING) {
            const unsigned char *at = entry->value.at;
            hr_gguf_string text = hr_gguf_next_string(&at);

            hr_json_string(json, text.at, (size_t)text.len);
        } else {
            (void)add_scalar(json, entry->value.type, entry->value.at);
        }
    }
}

/* A folder's metadata are its JSON files, as they are (they were parsed when the model was opened). */
static void add_folder_metadata(hr_buffer *json, const char *folder)
{
    static const char *const names[] = {"config.json", "generation_config.json"};
    bool is_first = true;

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[4096];
        char *text;
        size_t len;

        (void)snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        if (!hr_file_exists(path) || hr_file_read(path, 1 << 20, &text, &len, NULL) != HEADRACE_OK)
            continue;
        hr_buffer_printf(json, "%s\"%s\":", is_first ? "" : ",", names[i]);
        hr_buffer_add(json, text, len);
        free(text);
        is_first = false;
    }
}

static void add_tensors(hr_buffer *json, const hr_tensor_file *file)
{
    for (uint32_t i = 0; i < file->n_tensors; i++) {
        const hr_tensor *tensor = &file->tensors[i];

        hr_buffer_add_text(json, i > 0 ? ",{\"name\":" : "{\"name\":");
        add_text(json, tensor->name);
        hr_buffer_printf(json, ",\"dtype\":\"%s\",\"shape\":[", hr_dtypes[tensor->dtype].name);
        for (uint32_t d = 0; d < tensor->rank; d++)
            hr_buffer_printf(json, "%s%" PRIu64, d > 0 ? "," : "", tensor->shape[d]);
        hr_buffer_printf(json, "],\"bytes\":%" PRIu64 ",\"offset\":%" PRIu64 ",\"file\":", tensor->n_bytes,
                         tensor->file_offset);
        add_text(json, file->paths[tensor->shard]);
        hr_buffer_add_char(json, '}');
    }
}

headrace_status headrace_model_describe(const headrace_model *model, char **json, headrace_error *err)
{
    const hr_model *network = model->network;
    hr_buffer text = {0};

    hr_buffer_add_text(&text, "{\"info\":");
    add_info(&text, model);
    hr_buffer_add_text(&text, ",\"metadata\":{");
    if (network->format == HR_MODEL_GGUF)
        add_gguf_metadata(&text, &network->gguf);
    else
        add_folder_metadata(&text, network->path);
    hr_buffer_add_text(&text, "},\"tensors\":[");
    if (network->file)
        add_tensors(&text, network->file);
    hr_buffer_add_text(&text, "]}");
    *json = hr_buffer_take(&text, NULL);
    if (*json)
        return HEADRACE_OK;
    hr_buffer_deinit(&text);
    return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the description of a model");
}
