/* Opening and closing an engine, and the doors that any thread may use: submit, cancel, drain, numbers.
 *
 * All memory that steps use is reserved at open; what a request needs is reserved by submit, on the caller's thread.
 * After that the engine thread allocates nothing (tests/csrc/engine/test_engine.c counts).
 *
 * Lifetimes: a request is referenced by its handle, by the engine until its end was delivered, and by the control list
 * while it is on it. The engine struct is referenced by every request, so that cancel and release are safe even after
 * close.
 */
#include "engine/engine_state.h"

#include "base/clock.h"
#include "base/rng.h"
#include "base/status.h"

#include <inttypes.h>
#include <signal.h>

/* ---------------------------------------------------------------- open and close */

static void free_engine(hr_engine *engine)
{
    if (engine->proposer)
        engine->proposer->ops->close(engine->proposer);
    engine->proposer = NULL;
    free(engine->jobs);
    engine->jobs = NULL;
    if (engine->backend)
        engine->ops->close(engine->backend);
    hr_scheduler_deinit(&engine->scheduler);
    engine->backend = NULL;
}

static void unref(hr_engine *engine)
{
    if (atomic_fetch_sub(&engine->n_refs, 1) != 1)
        return;
    (void)pthread_mutex_destroy(&engine->delivery_lock);
    hr_inbox_deinit(&engine->inbox);
    free(engine);
}

static hr_backend_options backend_options(const hr_engine_config *config, const hr_limits *limits)
{
    return (hr_backend_options){
        .n_threads = config->n_threads,
        .page_tokens = limits->page_tokens,
        .max_rows = limits->max_num_batched_tokens,
        .max_spans = limits->max_num_seqs,
        .max_outputs = limits->max_outputs,
        .max_page_refs = limits->max_num_seqs * limits->pages_per_sequence,
        .n_valid_ids = config->n_valid_ids,
        .device_index = config->device_index,
        .kv_dtype = config->kv_dtype,
        .exact = config->exact,
    };
}

/* What the model's instance takes, the draft model's, and pages and slots of both together. */
typedef struct all_sizes {
    hr_backend_sizes own, draft, both;
} all_sizes;

/* With speculation each slot has a spare one for the state before the guesses, and a draft model has pages and slots of
 * its own, as many. */
static headrace_status ask_sizes(hr_engine *engine, const hr_backend_options *options, all_sizes *out,
                                 headrace_error *err)
{
    uint32_t slots_a_sequence = engine->speculation.max_guesses > 0 ? 2 : 1;

    *out = (all_sizes){0};
    HR_PASS(engine->ops->sizes(engine->model, options, &out->own, err));
    if (engine->speculation.draft_model)
        HR_PASS(hr_draft_sizes(engine->ops, engine->speculation.draft_model, options, &out->draft, err));
    out->both.page_bytes = out->own.page_bytes + out->draft.page_bytes;
    out->both.slot_bytes = slots_a_sequence * (out->own.slot_bytes + out->draft.slot_bytes);
    out->both.scratch_bytes = out->own.scratch_bytes + out->draft.scratch_bytes;
    return HEADRACE_OK;
}

/* On a device what is left for pages and slots depends on the scratch, and the scratch on rows and sequences. Those are
 * first decided as if the device were empty, which they can only fall below. A slot has a row of the page table, as
 * long as the context: *sizes, of the smallest batch, becomes that of the largest. */
static headrace_status device_bytes(hr_engine *engine, const hr_engine_config *config, all_sizes *sizes,
                                    uint64_t *available, headrace_error *err)
{
    hr_device_memory memory;
    hr_limits largest;
    hr_backend_options options;

    HR_PASS(engine->ops->device_memory(config->device_index, &memory, err));
    HR_PASS(hr_limits_decide(config, &config->model->arch, &sizes->both, memory.total_bytes, &largest, err));
    options = backend_options(config, &largest);
    HR_PASS(ask_sizes(engine, &options, sizes, err));
    return hr_limits_device_bytes(config, &memory, sizes->both.scratch_bytes, available, err);
}

/* Of the host's memory the instance takes its scratch first, packed weights included: they are there for good, unlike
 * pages of mapped files. */
static headrace_status host_bytes(const hr_backend_sizes *sizes, uint64_t *available, headrace_error *err)
{
    uint64_t free_bytes = hr_available_memory();
    const double MiB = 1048576;

    if (sizes->scratch_bytes >= free_bytes)
        return hr_fail(err, HEADRACE_E_MEMORY, "weights and work space need %.1f MiB, %.1f MiB of memory are free",
                       (double)sizes->scratch_bytes / MiB, (double)free_bytes / MiB);
    *available = free_bytes - sizes->scratch_bytes;
    return HEADRACE_OK;
}

/* Pages and slots have sizes that do not depend on how many there are: ask with the smallest batch, decide, ask again.
 */
static headrace_status decide_limits(hr_engine *engine, const hr_engine_config *config, all_sizes *sizes,
                                     headrace_error *err)
{
    hr_limits smallest = {.max_num_batched_tokens = 1, .max_num_seqs = 1, .max_outputs = 1, .pages_per_sequence = 1};
    hr_backend_options options;
    uint64_t available;

    HR_PASS(hr_limits_page_tokens(config, &smallest.page_tokens, err));
    options = backend_options(config, &smallest);
    HR_PASS(ask_sizes(engine, &options, sizes, err));
    if (engine->ops->device_memory)
        HR_PASS(device_bytes(engine, config, sizes, &available, err));
    else
        HR_PASS(host_bytes(&sizes->both, &available, err));
    HR_PASS(hr_limits_decide(config, &config->model->arch, &sizes->both, available, &engine->limits, err));
    options = backend_options(config, &engine->limits);
    return ask_sizes(engine, &options, sizes, err);
}

static void set_info(hr_engine *engine, const hr_engine_config *config, const all_sizes *all)
{
    const hr_limits *limits = &engine->limits;
    const hr_backend_sizes *sizes = &all->own, *draft = &all->draft;
    uint32_t n_slots = engine->proposer ? 2 * limits->max_num_seqs : limits->max_num_seqs;
    size_t kv_values = hr_arch_kv_values_per_token(&engine->model->arch) * limits->page_tokens;

    engine->info = (headrace_engine_info){
        .device = engine->ops->name,
        .compute = engine->ops->compute_name(engine->backend),
        .n_threads = engine->ops->n_threads(engine->backend),
        .max_model_len = limits->max_model_len,
        .max_num_seqs = limits->max_num_seqs,
        .max_num_batched_tokens = limits->max_num_batched_tokens,
        .max_num_queued_reqs = limits->max_num_queued_reqs,
        .page_tokens = limits->page_tokens,
        .n_pages = limits->n_pages,
        .kv_bytes = (uint64_t)sizes->page_bytes * limits->n_pages,
        .state_bytes = (uint64_t)sizes->slot_bytes * n_slots,
        .scratch_bytes = sizes->scratch_bytes,
        .kv_cache_dtype = sizes->page_bytes >= kv_values * sizeof(float) ? "f32" : "bf16",
        .prefix_caching = !config->disable_prefix_caching,
        .speculation = engine->proposer ? engine->proposer->ops->name : NULL,
        .num_speculative_tokens = engine->speculation.max_guesses,
        .draft_bytes = (uint64_t)draft->page_bytes * limits->n_pages + (uint64_t)draft->slot_bytes * n_slots +
                       draft->scratch_bytes,
    };
}

/* Signals are for the program's own threads: the engine's is started with all of them blocked. */
static bool start_thread(hr_engine *engine)
{
    sigset_t all, before;
    int rc;

    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&engine->thread, NULL, hr_engine_main, engine);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc == 0)
        (void)pthread_setname_np(engine->thread, "headrace-engine");
    return rc == 0;
}

static headrace_status open_proposer(hr_engine *engine, const hr_backend_options *options, headrace_error *err)
{
    const hr_speculation *speculation = &engine->speculation;

    engine->jobs = calloc(engine->limits.max_num_seqs, sizeof *engine->jobs);
    if (!engine->jobs)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the guesses of %" PRIu32 " sequences",
                       engine->limits.max_num_seqs);
    if (speculation->proposer)
        engine->proposer = speculation->proposer;
    else if (!speculation->draft_model)
        engine->proposer = &hr_proposer_lookup;
    else
        HR_PASS(hr_draft_open(engine->ops, speculation->draft_model, options, engine->limits.n_pages,
                              engine->limits.max_num_seqs, &engine->proposer, err));
    return HEADRACE_OK;
}

static headrace_status open_parts(hr_engine *engine, const hr_engine_config *config, headrace_error *err)
{
    const hr_limits *limits = &engine->limits;
    all_sizes sizes = {0};
    hr_backend_options options;
    hr_scheduler_limits scheduler_limits;
    bool speculates = engine->speculation.max_guesses > 0;

    HR_PASS(decide_limits(engine, config, &sizes, err));
    scheduler_limits = (hr_scheduler_limits){
        .max_rows = limits->max_num_batched_tokens,
        .max_outputs = limits->max_outputs,
        .max_seqs = limits->max_num_seqs,
        .n_pages = limits->n_pages,
        .page_tokens = limits->page_tokens,
        .warmup_rows = hr_arch_warmup_rows(&config->model->arch),
        .prefix_caching = !config->disable_prefix_caching,
        .max_steps_in_flight = engine->max_steps_in_flight,
        .speculative_rows = speculates ? hr_engine_speculative_rows(engine) : 0,
        .n_sampling_slots = speculates && engine->ops->wants_sampling_slots ? limits->max_num_seqs : 0,
    };
    if (!hr_scheduler_init(&engine->scheduler, &scheduler_limits))
        return hr_fail(err, HEADRACE_E_MEMORY,
                       "no memory for the tables of %" PRIu32 " pages and %" PRIu32 " sequences", limits->n_pages,
                       limits->max_num_seqs);
    options = backend_options(config, limits);
    HR_PASS(engine->ops->open(config->model, &options, limits->n_pages,
                              speculates ? 2 * limits->max_num_seqs : limits->max_num_seqs, &engine->backend, err));
    if (speculates)
        HR_PASS(open_proposer(engine, &options, err));
    for (uint32_t i = 0; i < engine->ops->max_steps_in_flight; i++)
        engine->flights[i].batch = engine->ops->batch(engine->backend, i);
    engine->inbox.limits.max_queued_reqs = limits->max_num_queued_reqs;
    engine->inbox.limits.max_queued_tokens = limits->max_num_queued_tokens;
    hr_metrics_init(&engine->metrics, limits->max_model_len);
    set_info(engine, config, &sizes);
    if (!start_thread(engine))
        return hr_fail(err, HEADRACE_E_MEMORY, "the engine's thread could not be started");
    return HEADRACE_OK;
}

headrace_status hr_engine_open(const hr_engine_config *config, hr_engine **out, headrace_error *err)
{
    hr_engine *engine;
    hr_inbox_limits none = {0};
    hr_speculation speculation;
    headrace_status status;

    *out = NULL;
    HR_PASS(hr_speculation_check(&config->speculation, config->model, &speculation, err));
    engine = calloc(1, sizeof *engine);
    if (!engine)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for an engine");
    engine->model = config->model;
    engine->ops = config->backend_ops;
    HR_ASSERT(engine->ops->max_steps_in_flight >= 1 && engine->ops->max_steps_in_flight <= HR_STEPS_IN_FLIGHT_MAX);
    engine->speculation = speculation;
    engine->max_steps_in_flight = speculation.max_guesses > 0 ? 1 : engine->ops->max_steps_in_flight;
    engine->seed = config->seed;
    atomic_init(&engine->n_refs, 1);
    hr_inbox_init(&engine->inbox, &none);
    (void)pthread_mutex_init(&engine->delivery_lock, NULL);
    status = open_parts(engine, config, err);
    if (status != HEADRACE_OK) {
        free_engine(engine);
        unref(engine);
        return status;
    }
    *out = engine;
    return HEADRACE_OK;
}

void hr_engine_close(hr_engine *engine)
{
    if (!engine)
        return;
    hr_inbox_stop(&engine->inbox);
    (void)pthread_join(engine->thread, NULL);
    free_engine(engine);
    unref(engine);
}

headrace_status hr_engine_drain(hr_engine *engine, uint64_t timeout_us)
{
    return hr_inbox_drain(&engine->inbox, timeout_us, NULL);
}

void hr_engine_get_info(const hr_engine *engine, headrace_engine_info *out)
{
    *out = engine->info;
}

void hr_engine_get_stats(const hr_engine *engine, headrace_stats *out)
{
    uint64_t since_us = atomic_load(&engine->in_backend_since_us), now_us = hr_now_us();

    hr_metrics_read(&engine->metrics, out);
    /* A device whose driver hangs cannot be told from outside in any other way; a CPU may well be slow. */
    out->is_stuck = engine->ops->device_memory && since_us > 0 && now_us > since_us && now_us - since_us > HR_STUCK_US;
    out->healthy = out->healthy && !out->is_stuck;
    out->n_pages = engine->limits.n_pages;
    out->n_slots = engine->limits.max_num_seqs;
}

/* ---------------------------------------------------------------- submit */

static headrace_status check_ids(const hr_engine *engine, const hr_submit *submit, headrace_error *err)
{
    if (submit->n_prompt == 0)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "prompt_ids",
                             "the prompt is empty: at least one token is needed");
    for (uint32_t i = 0; i < submit->n_prompt; i++)
        if (submit->prompt_ids[i] < 0 || (uint32_t)submit->prompt_ids[i] >= engine->model->arch.vocab_size)
            return hr_fail_param(err, HEADRACE_E_ARGUMENT, "prompt_ids",
                                 "prompt token %" PRIu32 " is %" PRId32 ", the vocabulary has ids 0 .. %" PRIu32, i,
                                 submit->prompt_ids[i], engine->model->arch.vocab_size - 1);
    if (submit->n > HEADRACE_N_MAX)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "n", "n is %" PRIu32 ", at most %d choices are possible",
                             submit->n, HEADRACE_N_MAX);
    return HEADRACE_OK;
}

static headrace_status work_out_sizes(hr_engine *engine, const hr_submit *submit, hr_request_sizes *out,
                                      headrace_error *err)
{
    uint32_t max_len = engine->limits.max_model_len, asked = submit->sampling->max_tokens;
    uint64_t total = (uint64_t)submit->n_prompt + (asked ? asked : 1);

    if (total > max_len) {
        hr_count(&engine->metrics.rejected_context, 1);
        return hr_fail_param(err, HEADRACE_E_CONTEXT, asked ? "max_tokens" : "prompt_ids",
                             "the prompt has %" PRIu32 " tokens and the answer may have %" PRIu32 ", together %" PRIu64
                             ", but the context is %" PRIu32 " tokens (max_model_len)",
                             submit->n_prompt, asked ? asked : 1, total, max_len);
    }
    out->n_choices = submit->n ? submit->n : 1;
    out->max_tokens = asked ? asked : max_len - submit->n_prompt;
    out->capacity = submit->n_prompt + out->max_tokens;
    out->pages_per_choice = hr_pages_for(out->capacity, engine->limits.page_tokens);
    return HEADRACE_OK;
}

static headrace_status count_rejection(hr_engine *engine, headrace_status status)
{
    if (status == HEADRACE_E_QUEUE_FULL)
        hr_count(&engine->metrics.rejected_queue_full, 1);
    return status;
}

headrace_status hr_engine_submit(hr_engine *engine, const hr_submit *submit, hr_request **out, headrace_error *err)
{
    const headrace_sampling *sampling = submit->sampling;
    hr_request_sizes sizes;
    hr_request *request;
    headrace_status status;
    uint64_t seed, serial;

    *out = NULL;
    HR_PASS(check_ids(engine, submit, err));
    HR_PASS(work_out_sizes(engine, submit, &sizes, err));
    /* Looked at before anything is allocated, so that overload is refused cheaply, and again when it is let in. */
    HR_PASS(count_rejection(engine, hr_inbox_check(&engine->inbox, submit->n_prompt, err)));
    seed = sampling->has_seed ? sampling->seed : hr_rng_at(engine->seed, atomic_fetch_add(&engine->n_requests, 1));
    serial = atomic_fetch_add(&engine->n_serials, sizes.n_choices);
    request = hr_request_create(engine, submit, &sizes, seed, serial, hr_now_us());
    if (!request)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for a request of %" PRIu32 " choices of %" PRIu32 " tokens",
                       sizes.n_choices, sizes.capacity);
    atomic_fetch_add(&engine->n_refs, 1);
    atomic_fetch_add(&request->n_refs, 1); /* one for the handle, one for the engine */
    status = hr_inbox_put(&engine->inbox, request, err);
    if (status != HEADRACE_OK) {
        hr_request_unref(request);
        hr_request_unref(request);
        return count_rejection(engine, status);
    }
    *out = request;
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- handles */

void hr_request_unref(hr_request *request)
{
    hr_engine *engine = request->engine;

    if (atomic_fetch_sub(&request->n_refs, 1) != 1)
        return;
    hr_request_destroy(request);
    unref(engine);
}

void hr_request_cancel(hr_request *request)
{
    hr_inbox_cancel(&request->engine->inbox, request, NULL);
}

void hr_request_stop_choice(hr_request *request, uint32_t index)
{
    if (index < request->n_choices)
        hr_inbox_cancel(&request->engine->inbox, request, &request->choices[index]);
}

void hr_request_release(hr_request *request)
{
    if (!request)
        return;
    if (!hr_request_is_done(request))
        hr_request_cancel(request);
    (void)pthread_mutex_lock(&request->engine->delivery_lock);
    request->is_released = true;
    (void)pthread_mutex_unlock(&request->engine->delivery_lock);
    hr_request_unref(request);
}
