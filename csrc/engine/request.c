/* Both sides of a request's outbox, and the handle functions that need no engine.
 *
 * The outbox is not a ring. A sequence's ids are append-only and allocated at submit for the longest answer, so the
 * consumer simply reads them up to a published count: nothing is copied, nothing can overflow, and a consumer that does
 * not come for a minute costs nobody anything. The same holds for logprobs.
 *
 * Memory order: published is stored with sequential consistency after everything it promises. The waiter announces
 * itself (n_waiters) before it looks at published once more, and the engine looks at n_waiters after it stored
 * published; in a single total order one of the two sees the other, so no wake-up is lost and no lock is taken when
 * nobody waits.
 */
#include "engine/engine_state.h"

#include "base/clock.h"
#include "base/status.h"

#include <errno.h>
#include <string.h>

/* ---------------------------------------------------------------- life */

static void set_sampling(hr_request *request, const hr_submit *submit)
{
    const headrace_sampling *from = submit->sampling;
    uint32_t n_stop_ids = 0;

    if (!from->ignore_eos)
        for (; n_stop_ids < submit->n_eos_ids; n_stop_ids++)
            request->stop_ids[n_stop_ids] = submit->eos_ids[n_stop_ids];
    for (uint32_t i = 0; i < from->n_stop_ids; i++)
        request->stop_ids[n_stop_ids++] = from->stop_ids[i];
    if (from->n_bias > 0)
        memcpy(request->bias, from->bias, from->n_bias * sizeof *request->bias);
    for (uint32_t i = 0; i < request->n_choices; i++) {
        hr_sequence *sequence = &request->choices[i].sequence;

        sequence->n_logprobs = from->n_logprobs;
        sequence->n_prompt_logprobs = i == 0 ? from->n_prompt_logprobs : -1;
        sequence->sampling = (hr_sampling_params){
            .temperature = from->temperature,
            .top_p = from->top_p,
            .min_p = from->min_p,
            .repetition_penalty = from->repetition_penalty,
            .presence_penalty = from->presence_penalty,
            .frequency_penalty = from->frequency_penalty,
            .top_k = from->top_k,
            .min_tokens = from->min_tokens,
            .n_bias = from->n_bias,
            .n_stop_ids = n_stop_ids,
            .bias = request->bias,
            .stop_ids = request->stop_ids,
        };
    }
}

/* The memory of all choices. The blocks are not touched beyond the prompt, so an answer that ends early costs only what
 * it used. */
static bool allocate(hr_request *request, const hr_submit *submit, const hr_request_sizes *sizes)
{
    const headrace_sampling *sampling = submit->sampling;
    const hr_speculation *speculation = &request->engine->speculation;

    request->choices = calloc(sizes->n_choices, sizeof *request->choices);
    request->ids_block = calloc((size_t)sizes->n_choices * sizes->capacity, sizeof(int32_t));
    request->pages_block = calloc((size_t)sizes->n_choices * sizes->pages_per_choice, sizeof(uint32_t));
    request->bias = calloc((size_t)sampling->n_bias + 1, sizeof *request->bias);
    request->stop_ids = calloc((size_t)submit->n_eos_ids + sampling->n_stop_ids + 1, sizeof *request->stop_ids);
    if (!request->choices || !request->ids_block || !request->pages_block || !request->bias || !request->stop_ids)
        return false;
    if (speculation->lookup_max > 0 && hr_engine_max_guesses(request->engine, submit) > 0) {
        size_t size = hr_lookup_size(speculation->lookup_min, speculation->lookup_max, sizes->capacity);

        request->lookup_block = calloc(sizes->n_choices * size, sizeof *request->lookup_block);
        if (!request->lookup_block)
            return false;
    }
    if (sampling->n_prompt_logprobs >= 0) {
        request->prompt_logprobs = calloc(submit->n_prompt, sizeof *request->prompt_logprobs);
        if (!request->prompt_logprobs)
            return false;
    }
    for (uint32_t i = 0; i < sizes->n_choices && sampling->n_logprobs >= 0; i++) {
        request->choices[i].logprobs = calloc(sizes->max_tokens, sizeof *request->choices[i].logprobs);
        if (!request->choices[i].logprobs)
            return false;
    }
    return true;
}

static void set_guesses(hr_request *request, const hr_submit *submit, uint32_t i, uint32_t capacity)
{
    const hr_speculation *speculation = &request->engine->speculation;
    hr_sequence *sequence = &request->choices[i].sequence;

    sequence->max_proposals = hr_engine_max_guesses(request->engine, submit);
    if (request->lookup_block)
        hr_lookup_place(&sequence->lookup, speculation->lookup_min, speculation->lookup_max,
                        request->lookup_block +
                            i * hr_lookup_size(speculation->lookup_min, speculation->lookup_max, capacity));
}

static void set_choices(hr_request *request, const hr_submit *submit, const hr_request_sizes *sizes, uint64_t seed,
                        uint64_t serial, uint64_t now_us)
{
    for (uint32_t i = 0; i < sizes->n_choices; i++) {
        hr_sequence *sequence = &request->choices[i].sequence;

        sequence->n_prompt = submit->n_prompt;
        sequence->capacity = sizes->capacity;
        sequence->ids = (int32_t *)request->ids_block + (size_t)i * sizes->capacity;
        sequence->pages = (uint32_t *)request->pages_block + (size_t)i * sizes->pages_per_choice;
        sequence->sampling.seed = seed + i;
        sequence->cache_salt = submit->cache_salt;
        sequence->order_key = hr_order_key(submit->priority, now_us);
        sequence->serial = serial + i;
        sequence->leader = i > 0 ? &request->choices[0].sequence : NULL;
        sequence->owner = request;
        set_guesses(request, submit, i, sizes->capacity);
        memcpy(sequence->ids, submit->prompt_ids, submit->n_prompt * sizeof(int32_t));
        hr_sequence_start(sequence);
    }
}

hr_request *hr_request_create(hr_engine *engine, const hr_submit *submit, const hr_request_sizes *sizes, uint64_t seed,
                              uint64_t serial, uint64_t now_us)
{
    hr_request *request = calloc(1, sizeof *request);
    pthread_condattr_t attributes;

    if (!request)
        return NULL;
    request->engine = engine;
    request->n_choices = request->n_live_choices = sizes->n_choices;
    request->n_prompt = submit->n_prompt;
    request->notify = submit->notify;
    request->notify_user = submit->notify_user;
    request->flush = submit->flush;
    request->flush_user = submit->flush_user;
    atomic_init(&request->n_refs, 1);
    atomic_init(&request->submitted_us, now_us);
    (void)pthread_mutex_init(&request->wait_lock, NULL);
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&request->wait_cond, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    if (!allocate(request, submit, sizes)) {
        hr_request_destroy(request);
        return NULL;
    }
    set_sampling(request, submit);
    set_choices(request, submit, sizes, seed, serial, now_us);
    return request;
}

void hr_request_destroy(hr_request *request)
{
    for (uint32_t i = 0; i < request->n_choices && request->choices; i++)
        free(request->choices[i].logprobs);
    free(request->choices);
    free(request->ids_block);
    free(request->pages_block);
    free(request->lookup_block);
    free(request->bias);
    free(request->stop_ids);
    free(request->prompt_logprobs);
    (void)pthread_cond_destroy(&request->wait_cond);
    (void)pthread_mutex_destroy(&request->wait_lock);
    free(request);
}

/* ---------------------------------------------------------------- engine side */

void hr_choice_publish_token(hr_choice *choice)
{
    atomic_store(&choice->published, (uint64_t)hr_sequence_n_output(&choice->sequence) * 2);
}

void hr_choice_publish_end(hr_choice *choice, headrace_finish finish, int32_t stop_id, bool has_token)
{
    HR_ASSERT(!choice->has_ended);
    choice->finish = finish;
    choice->stop_id = stop_id;
    choice->finish_has_token = has_token;
    choice->has_ended = true;
    atomic_store(&choice->published, (uint64_t)hr_sequence_n_output(&choice->sequence) * 2 + 1);
}

void hr_request_wake(hr_request *request)
{
    if (atomic_load(&request->n_waiters) == 0)
        return;
    (void)pthread_mutex_lock(&request->wait_lock);
    (void)pthread_cond_broadcast(&request->wait_cond);
    (void)pthread_mutex_unlock(&request->wait_lock);
}

/* ---------------------------------------------------------------- consumer side */

static bool choice_has_event(const hr_choice *choice)
{
    uint64_t published = atomic_load(&choice->published);
    bool drops_tokens = atomic_load_explicit(&choice->is_stop_requested, memory_order_relaxed);

    return ((published & 1) && !choice->is_end_taken) || (published / 2 > choice->n_taken && !drops_tokens);
}

static void put_end(hr_request *request, hr_choice *choice, bool is_stopped, hr_token_event *event)
{
    event->finish = choice->finish;
    event->stop_id = choice->finish == HEADRACE_FINISH_STOP ? choice->stop_id : -1;
    if (is_stopped && choice->finish == HEADRACE_FINISH_LENGTH)
        event->finish = HEADRACE_FINISH_STOP;
    if (is_stopped)
        event->stop_id = -1;
    if (choice->finish == HEADRACE_FINISH_ERROR)
        event->error = request->error;
    choice->is_end_taken = true;
    request->n_ends_taken++;
}

static bool take_from_choice(hr_request *request, uint32_t index, hr_token_event *event)
{
    hr_choice *choice = &request->choices[index];
    uint64_t published = atomic_load(&choice->published);
    uint32_t n_tokens = (uint32_t)(published / 2);
    bool has_ended = published & 1, is_stopped;

    if (choice->is_end_taken)
        return false;
    is_stopped = atomic_load(&choice->is_stop_requested);
    if (is_stopped)
        choice->n_taken = n_tokens; /* the caller saw its stop string: what came after it is nobody's */
    if (choice->n_taken == n_tokens && !has_ended)
        return false;
    event->index = index;
    event->has_token = choice->n_taken < n_tokens;
    event->id = -1;
    event->finish = HEADRACE_FINISH_NONE;
    event->stop_id = -1;
    event->error.status = HEADRACE_OK;
    event->error.param[0] = event->error.message[0] = '\0';
    event->logprobs = NULL;
    if (event->has_token) {
        event->id = choice->sequence.ids[choice->sequence.n_prompt + choice->n_taken];
        if (choice->logprobs)
            event->logprobs = &choice->logprobs[choice->n_taken];
        choice->n_taken++;
    }
    if (has_ended && choice->n_taken == n_tokens && (!event->has_token || choice->finish_has_token))
        put_end(request, choice, is_stopped, event);
    return true;
}

bool hr_request_take(hr_request *request, hr_token_event *event)
{
    for (uint32_t i = 0; i < request->n_choices; i++) {
        uint32_t index = request->cursor;

        /* Choice by choice in turn: where a step gives each choice one token, this is the order in which they were
         * made. */
        request->cursor = index + 1 < request->n_choices ? index + 1 : 0;
        if (take_from_choice(request, index, event))
            return true;
    }
    return false;
}

static bool has_event(const hr_request *request)
{
    for (uint32_t i = 0; i < request->n_choices; i++)
        if (choice_has_event(&request->choices[i]))
            return true;
    return hr_request_is_done(request);
}

bool hr_request_wait(hr_request *request, uint64_t timeout_us)
{
    const uint64_t second = 1000000, forever = UINT64_C(100) * 365 * 86400 * 1000000;
    uint64_t until = hr_now_us() + (timeout_us < forever ? timeout_us : forever);
    struct timespec at = {.tv_sec = (time_t)(until / second), .tv_nsec = (long)(until % second * 1000)};
    bool found = has_event(request);

    if (found || timeout_us == 0)
        return found;
    (void)pthread_mutex_lock(&request->wait_lock);
    atomic_fetch_add(&request->n_waiters, 1);
    while (!(found = has_event(request)))
        if (pthread_cond_timedwait(&request->wait_cond, &request->wait_lock, &at) == ETIMEDOUT) {
            found = has_event(request);
            break;
        }
    atomic_fetch_sub(&request->n_waiters, 1);
    (void)pthread_mutex_unlock(&request->wait_lock);
    return found;
}

bool hr_request_is_done(const hr_request *request)
{
    return request->n_ends_taken == request->n_choices;
}

const headrace_token_logprobs *hr_request_prompt_logprobs(const hr_request *request)
{
    return atomic_load(&request->has_prompt_logprobs) ? request->prompt_logprobs : NULL;
}

hr_request_times hr_request_get_times(const hr_request *request)
{
    return (hr_request_times){
        .submitted_us = atomic_load(&request->submitted_us),
        .started_us = atomic_load(&request->started_us),
        .first_token_us = atomic_load(&request->first_token_us),
        .finished_us = atomic_load(&request->finished_us),
        .n_cached_tokens = atomic_load(&request->n_cached_tokens),
        .n_guesses = atomic_load(&request->n_guesses),
        .n_guesses_right = atomic_load(&request->n_guesses_right),
    };
}
