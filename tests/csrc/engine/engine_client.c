#include "engine_client.h"

#include "fake_backend.h"

#include <string.h>

headrace_sampling client_greedy(uint32_t max_tokens)
{
    return (headrace_sampling){.struct_size = sizeof(headrace_sampling),
                               .top_p = 1,
                               .repetition_penalty = 1,
                               .n_logprobs = -1,
                               .n_prompt_logprobs = -1,
                               .max_tokens = max_tokens};
}

void client_prompt(int32_t *ids, uint32_t n, uint32_t n_common, uint32_t variant)
{
    for (uint32_t i = 0; i < n; i++)
        ids[i] = (int32_t)(i < n_common ? 10 + i % 50 : 100 + (i * 31 + variant * 17) % 500);
}

void client_take_all(hr_request *request, client_answer *answers)
{
    hr_token_event event;

    while (hr_request_take(request, &event)) {
        client_answer *answer = &answers[event.index];

        HR_ASSERT(answer->finish == HEADRACE_FINISH_NONE); /* nothing comes after the end */
        if (event.has_token) {
            HR_ASSERT(answer->n_ids < CLIENT_TOKENS_MAX);
            if (event.logprobs) {
                HR_ASSERT(event.logprobs->id == event.id);
                answer->logprobs[answer->n_ids] = event.logprobs->logprob;
            }
            answer->ids[answer->n_ids++] = event.id;
        }
        answer->finish = event.finish;
        answer->stop_id = event.stop_id;
        answer->error = event.error.status;
    }
}

void client_collect(hr_request *request, client_answer *answers)
{
    while (!hr_request_is_done(request)) {
        HR_ASSERT(hr_request_wait(request, 60000000));
        client_take_all(request, answers);
    }
}

headrace_status client_ask(hr_engine *engine, const hr_submit *submit, client_answer *answers)
{
    hr_request *request;

    HR_PASS(hr_engine_submit(engine, submit, &request, NULL));
    memset(answers, 0, (submit->n ? submit->n : 1) * sizeof *answers);
    client_collect(request, answers);
    hr_request_release(request);
    return HEADRACE_OK;
}

void client_truth(const hr_submit *submit, uint32_t choice, uint64_t seed, uint32_t max_model_len, uint32_t window,
                  client_answer *truth)
{
    const headrace_sampling *sampling = submit->sampling;
    int32_t ids[2 * CLIENT_TOKENS_MAX];
    uint32_t n = submit->n_prompt, max_tokens = sampling->max_tokens;
    hr_fake_truth running = {0};
    hr_sampling_params params = {.temperature = sampling->temperature, .seed = seed + choice};

    memset(truth, 0, sizeof *truth);
    memcpy(ids, submit->prompt_ids, n * sizeof *ids);
    if (max_tokens == 0)
        max_tokens = max_model_len - n;
    truth->stop_id = -1;
    while (truth->finish == HEADRACE_FINISH_NONE) {
        int32_t id = hr_fake_sample(hr_fake_truth_at(&running, ids, n - 1, window), &params, truth->n_ids);
        bool may_stop = truth->n_ids >= sampling->min_tokens;

        ids[n++] = id;
        truth->ids[truth->n_ids++] = id;
        if (truth->n_ids == max_tokens)
            truth->finish = HEADRACE_FINISH_LENGTH;
        for (uint32_t i = 0; may_stop && i < submit->n_eos_ids && !sampling->ignore_eos; i++)
            if (submit->eos_ids[i] == id)
                truth->stop_id = id;
        for (uint32_t i = 0; may_stop && i < sampling->n_stop_ids; i++)
            if (sampling->stop_ids[i] == id)
                truth->stop_id = id;
        if (truth->stop_id >= 0)
            truth->finish = HEADRACE_FINISH_STOP;
    }
}
