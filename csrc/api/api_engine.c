/* headrace_engine: one hr_engine on the device that was asked for, and the lock of its streams' links. */
#include "api/api.h"

#include "backend/devices.h"

#include <string.h>

headrace_status hr_need_weights(const headrace_model *model, headrace_error *err)
{
    if (model->network->file || model->network->is_dummy)
        return HEADRACE_OK;
    return hr_fail_param(err, HEADRACE_E_ARGUMENT, "model",
                         "model: '%s' was opened with skip_weights; open it again without", model->network->name);
}

/* Every id must mean the same text: a guess is an id. */
static headrace_status check_draft_vocabulary(const headrace_model *model, const headrace_model *draft,
                                              headrace_error *err)
{
    uint32_t n = model->tokenizer ? hr_tokenizer_size(model->tokenizer) : 0;
    uint32_t n_draft = draft->tokenizer ? hr_tokenizer_size(draft->tokenizer) : 0;

    if (n != n_draft)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "draft_model",
                             "draft_model: the tokenizer of '%s' has %u ids, that of the model '%s' %u: the vocabulary "
                             "must be the same",
                             draft->network->name, n_draft, model->network->name, n);
    for (uint32_t id = 0; id < n; id++) {
        const char *text = "", *draft_text = "";
        size_t len = 0, draft_len = 0;
        bool has_text = headrace_token_bytes(model, (int32_t)id, &text, &len, NULL);

        if (headrace_token_bytes(draft, (int32_t)id, &draft_text, &draft_len, NULL) != has_text || len != draft_len ||
            memcmp(text, draft_text, len) != 0)
            return hr_fail_param(err, HEADRACE_E_ARGUMENT, "draft_model",
                                 "draft_model: token %u of '%s' is another text than that of the model '%s': the "
                                 "vocabulary must be the same",
                                 id, draft->network->name, model->network->name);
    }
    return HEADRACE_OK;
}

static headrace_status read_speculation(const headrace_model *model, const headrace_engine_options *o,
                                        hr_speculation *out, headrace_error *err)
{
    *out = (hr_speculation){.max_guesses = o->num_speculative_tokens,
                            .lookup_max = o->prompt_lookup_max,
                            .lookup_min = o->prompt_lookup_min};
    if (!o->draft_model)
        return HEADRACE_OK;
    if (o->prompt_lookup_max > 0 || o->prompt_lookup_min > 0)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "draft_model",
                             "draft_model: is given together with prompt_lookup_max or prompt_lookup_min: guesses come "
                             "either from a draft model or from prompt lookup");
    HR_PASS(hr_need_weights(o->draft_model, err));
    HR_PASS(check_draft_vocabulary(model, o->draft_model, err));
    out->draft_model = o->draft_model->network;
    return HEADRACE_OK;
}

static headrace_status read_config(const headrace_model *model, const headrace_engine_options *o,
                                   hr_engine_config *config, headrace_error *err)
{
    uint32_t longest = model->network->arch.max_positions;
    hr_device_choice device;

    if (o->max_model_len > longest)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "max_model_len",
                             "max_model_len: %u is outside 0..%u (the model's positions)", o->max_model_len, longest);
    HR_PASS(hr_device_choose(o->device, &device, err));
    *config = (hr_engine_config){
        .model = model->network,
        .backend_ops = device.ops,
        .device_index = device.index,
        .gpu_memory_utilization = o->gpu_memory_utilization,
        .n_threads = o->n_threads,
        .max_model_len = o->max_model_len,
        .max_num_seqs = o->max_num_seqs,
        .max_num_batched_tokens = o->max_num_batched_tokens,
        .max_num_queued_reqs = o->max_num_queued_reqs,
        .page_tokens = o->page_tokens,
        .n_valid_ids = model->tokenizer ? hr_tokenizer_size(model->tokenizer) : model->network->arch.vocab_size,
        .max_num_queued_tokens = o->max_num_queued_tokens,
        .kv_cache_bytes = o->kv_cache_bytes,
        .queue_timeout_us = o->queue_timeout_us,
        .seed = o->seed,
        .disable_prefix_caching = o->disable_prefix_caching,
        .exact = o->exact,
    };
    HR_PASS(read_speculation(model, o, &config->speculation, err));
    return hr_kv_dtype_parse(o->kv_cache_dtype, &config->kv_dtype, err);
}

headrace_status headrace_engine_open(headrace_model *model, const headrace_engine_options *options,
                                     headrace_engine **out, headrace_error *err)
{
    headrace_engine_options own;
    hr_engine_config config;
    headrace_engine *engine;
    headrace_status status;

    *out = NULL;
    headrace_engine_options_init(&own);
    if (options)
        HR_PASS(hr_options_read(&own, sizeof own, options, "engine options", err));
    HR_PASS(hr_need_weights(model, err));
    HR_PASS(read_config(model, &own, &config, err));
    engine = calloc(1, sizeof *engine);
    if (!engine)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for an engine");
    engine->model = model;
    (void)pthread_mutex_init(&engine->lock, NULL);
    status = hr_engine_open(&config, &engine->engine, err);
    if (status != HEADRACE_OK) {
        (void)pthread_mutex_destroy(&engine->lock);
        free(engine);
        return status;
    }
    hr_engine_get_info(engine->engine, &engine->info);
    *out = engine;
    return HEADRACE_OK;
}

void headrace_engine_close(headrace_engine *engine)
{
    if (!engine)
        return;
    hr_engine_close(engine->engine); /* joins the engine thread: nobody looks at links any more */
    while (engine->links) {
        hr_stream_link *link = engine->links;

        engine->links = link->next_link;
        free(link);
    }
    (void)pthread_mutex_destroy(&engine->lock);
    free(engine);
}

headrace_status headrace_engine_drain(headrace_engine *engine, uint64_t timeout_us)
{
    return hr_engine_drain(engine->engine, timeout_us);
}

void headrace_engine_get_info(const headrace_engine *engine, headrace_engine_info *out)
{
    *out = engine->info;
}

void headrace_engine_get_stats(const headrace_engine *engine, headrace_stats *out)
{
    hr_engine_get_stats(engine->engine, out);
}
