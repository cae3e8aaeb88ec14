/* See metadata.h. This file: the network's sizes, and metadata taken over from another GGUF file. */
#include "convert/metadata.h"

#include "base/file.h"

#include <limits.h>
#include <string.h>

enum { JSON_BYTES_MAX = 512 << 20, QUANTIZATION_VERSION = 2, GATING_SIGMOID = 2 };

headrace_status hr_metadata_read_json(const char *folder, const char *name, json_t **out, headrace_error *err)
{
    char path[PATH_MAX];
    json_error_t error;
    char *text;
    size_t len;

    *out = NULL;
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    if (!hr_file_exists(path))
        return HEADRACE_OK;
    HR_PASS(hr_file_read(path, JSON_BYTES_MAX, &text, &len, err));
    *out = json_loadb(text, len, JSON_ALLOW_NUL, &error);
    free(text);
    if (!*out)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: byte %d: %s", path, error.position, error.text);
    if (json_is_object(*out))
        return HEADRACE_OK;
    json_decref(*out);
    *out = NULL;
    return hr_fail(err, HEADRACE_E_MODEL, "%s: not a JSON object", path);
}

const json_t *hr_metadata_field(const json_t *config, const char *name)
{
    const json_t *value = json_object_get(config, name);

    if (!value || json_is_null(value))
        value = json_object_get(json_object_get(config, "text_config"), name);
    return json_is_null(value) ? NULL : value;
}

/* ---------------------------------------------------------------- sizes */

typedef struct key_name {
    char text[96];
} key_name;

static key_name key_of(const hr_arch *arch, const char *suffix)
{
    key_name out;

    (void)snprintf(out.text, sizeof out.text, "%s.%s", arch->name, suffix);
    return out;
}

static void put_size(hr_gguf_writer *writer, const hr_arch *arch, const char *suffix, uint32_t value)
{
    hr_gguf_put_u32(writer, key_of(arch, suffix).text, value);
}

/* One number of key-value heads a layer; 0 says convolution. */
static void put_layer_list(const hr_model *model, hr_gguf_writer *writer)
{
    int32_t heads[HR_LAYERS_MAX];

    for (uint32_t i = 0; i < model->arch.n_layers; i++)
        heads[i] = model->layers[i].operator== HR_OPERATOR_CONV ? 0 : (int32_t)model->arch.n_kv_heads;
    hr_gguf_put_i32_array(writer, key_of(&model->arch, "attention.head_count_kv").text, heads, model->arch.n_layers);
}

static void put_arch(const hr_metadata_source *source, const json_t *config, hr_gguf_writer *writer)
{
    const hr_arch *arch = &source->model->arch;

    put_size(writer, arch, "block_count", arch->n_layers);
    put_size(writer, arch, "context_length", arch->max_positions);
    put_size(writer, arch, "embedding_length", arch->hidden_size);
    put_size(writer, arch, "feed_forward_length", arch->ffn_dim);
    put_size(writer, arch, "attention.head_count", arch->n_heads);
    put_layer_list(source->model, writer);
    hr_gguf_put_f32(writer, key_of(arch, "rope.freq_base").text, arch->rope_theta);
    hr_gguf_put_f32(writer, key_of(arch, "attention.layer_norm_rms_epsilon").text, arch->norm_eps);
    if (arch->n_experts > 0) {
        put_size(writer, arch, "expert_count", arch->n_experts);
        put_size(writer, arch, "expert_used_count", arch->n_experts_used);
    }
    if (hr_metadata_field(config, "head_dim") || arch->head_dim * arch->n_heads != arch->hidden_size) {
        put_size(writer, arch, "attention.key_length", arch->head_dim);
        put_size(writer, arch, "attention.value_length", arch->head_dim);
    }
    hr_gguf_put_u32(writer, "general.file_type", source->mix->file_type);
    if (arch->n_experts > 0) {
        put_size(writer, arch, "expert_feed_forward_length", arch->expert_ffn_dim);
        put_size(writer, arch, "leading_dense_block_count", arch->n_dense_layers);
        put_size(writer, arch, "expert_gating_func", GATING_SIGMOID);
    }
    put_size(writer, arch, "vocab_size", arch->vocab_size);
    put_size(writer, arch, "shortconv.l_cache", arch->conv_length);
    hr_gguf_put_u32(writer, "general.quantization_version", QUANTIZATION_VERSION);
}

static headrace_status put_folder(const hr_metadata_source *source, hr_gguf_writer *writer, headrace_error *err)
{
    const char *arch = source->model->arch.name;
    json_t *config;
    headrace_status status;

    HR_PASS(hr_metadata_read_json(source->model->path, "config.json", &config, err));
    hr_gguf_put_string(writer, "general.architecture", arch, strlen(arch));
    hr_gguf_put_string(writer, "general.type", "model", 5);
    HR_TRY_GOTO(done, hr_metadata_put_general(source, config, writer, err));
    put_arch(source, config, writer);
    status = hr_metadata_put_tokenizer(source, config, writer, err);
done:
    json_decref(config);
    return status;
}

/* ---------------------------------------------------------------- another GGUF file's */

static bool is_key(hr_gguf_string key, const char *name)
{
    return key.len == strlen(name) && memcmp(key.at, name, (size_t)key.len) == 0;
}

/* How its file lay, which holds no more. */
static bool is_about_layout(hr_gguf_string key)
{
    return is_key(key, "general.alignment") || (key.len > 6 && memcmp(key.at, "split.", 6) == 0);
}

static bool is_about_imatrix(hr_gguf_string key)
{
    static const char prefix[] = "quantize.imatrix.";

    return key.len >= sizeof prefix - 1 && memcmp(key.at, prefix, sizeof prefix - 1) == 0;
}

/* What is said anew keeps its place, so that a file made by way of another one is the file made at once. */
static void put_gguf(const hr_metadata_source *source, hr_gguf_writer *writer)
{
    static const char *const names[2] = {"general.file_type", "general.quantization_version"};
    const uint32_t values[2] = {source->mix->file_type, QUANTIZATION_VERSION};
    const hr_gguf *gguf = &source->model->gguf;
    bool was_put[2] = {false, false};

    for (uint32_t i = 0; i < gguf->n_entries; i++) {
        hr_gguf_string key = gguf->entries[i].key;
        size_t which = is_key(key, names[0]) ? 0 : is_key(key, names[1]) ? 1 : 2;

        if (which < 2) {
            hr_gguf_put_u32(writer, names[which], values[which]);
            was_put[which] = true;
        } else if (!is_about_layout(key) && !(source->imatrix && is_about_imatrix(key))) {
            hr_gguf_put_entry(writer, &gguf->entries[i]);
        }
    }
    for (size_t i = 0; i < 2; i++)
        if (!was_put[i])
            hr_gguf_put_u32(writer, names[i], values[i]);
}

/* What the importance was made from, in the keys of llama.cpp's quantiser. */
static void put_imatrix(const hr_imatrix *imatrix, hr_gguf_writer *writer)
{
    hr_gguf_put_string(writer, "quantize.imatrix.file", imatrix->path, strlen(imatrix->path));
    if (imatrix->n_datasets > 0)
        hr_gguf_put_string(writer, "quantize.imatrix.dataset", imatrix->datasets[0], strlen(imatrix->datasets[0]));
    hr_gguf_put_u32(writer, "quantize.imatrix.entries_count", imatrix->n_entries);
    if (imatrix->chunk_count > 0)
        hr_gguf_put_u32(writer, "quantize.imatrix.chunks_count", imatrix->chunk_count);
}

headrace_status hr_metadata_put(const hr_metadata_source *source, hr_gguf_writer *writer, headrace_error *err)
{
    if (source->model->format == HR_MODEL_GGUF)
        put_gguf(source, writer);
    else
        HR_PASS(put_folder(source, writer, err));
    if (source->imatrix)
        put_imatrix(source->imatrix, writer);
    return HEADRACE_OK;
}
