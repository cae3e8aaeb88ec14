/* A batch, described to the device in one block (hrk.h, "the step's tables").
 *
 * The device keeps page tables, sampling parameters and penalty counts by slot; the host keeps a note of what it last
 * sent and sends what differs. Notes are keyed by hr_span.sequence, so a slot that changes hands, or a sequence that
 * comes back after it was preempted, is described anew. Ids that the device samples are counted there; the note counts
 * along, so a history is sent once a sequence, and only for those whose parameters look at it.
 *
 * Each slot has two convolution states. A step reads the current one and writes the other, then they change roles.
 *
 * Attention: rows at positions below n_prompt go into prefill tiles, the others are decode items, however they came
 * into the step, so that a row's numbers do not depend on its company. Decode items are cut into rounds by the scratch
 * they need; a round is an hrk_step of its own, equal to the first but for its items.
 *
 * Changes are gathered first and put into the block behind the batch. When they do not fit they go in a block of their
 * own, with no rows, and the host waits until it is copied: the one wait of a step, and a rare one.
 */
#include "backend/cuda/cuda.h"

#include "backend/check.h"

#include <string.h>

enum { SECTION_ALIGNMENT = 16 };

static size_t align_section(size_t n)
{
    return (n + SECTION_ALIGNMENT - 1) / SECTION_ALIGNMENT * SECTION_ALIGNMENT;
}

size_t hr_cuda_upload_bytes(const hr_cuda *cuda)
{
    const hr_backend_options *o = &cuda->options;

    return align_section(cuda->max_rounds * sizeof(hrk_step)) + align_section(o->max_rows * sizeof(int32_t)) +
           align_section(o->max_spans * sizeof(hrk_span)) + align_section(o->max_outputs * sizeof(hrk_output)) +
           align_section(o->max_rows * sizeof(hrk_decode_item)) +
           align_section(cuda->max_prefill_tiles * sizeof(hrk_prefill_tile)) +
           align_section(HR_CUDA_PAGE_UPDATES * sizeof(hrk_page_update)) +
           align_section(o->max_outputs * sizeof(hrk_sampling_update)) +
           align_section(o->max_outputs * sizeof(hrk_history_job)) +
           align_section(HR_CUDA_PAYLOAD_WORDS * sizeof(uint32_t));
}

/* The block being filled. */
typedef struct writer {
    hr_cuda *cuda;
    hr_cuda_flight *flight;
    hrk_step step;
    size_t used;
} writer;

static void *reserve(writer *w, size_t n, size_t size, uint32_t *at)
{
    *at = (uint32_t)w->used;
    w->used += align_section(n * size);
    HR_ASSERT(w->used <= w->cuda->upload_bytes);
    return w->flight->upload + *at;
}

static headrace_status copy_block(writer *w, headrace_error *err)
{
    w->flight->upload_used = w->used;
    HR_CUDA_TRY(w->cuda, cudaMemcpyAsync((void *)(uintptr_t)w->cuda->tables.step, w->flight->upload, w->used,
                                         cudaMemcpyHostToDevice, w->cuda->stream));
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- changes */

/* Puts the gathered changes at the end of the block; offsets into the payload become offsets into the block. */
static void write_changes(writer *w)
{
    hr_cuda_changes *c = &w->cuda->changes;
    hrk_step *step = &w->step;
    hrk_sampling_update *sampling;
    hrk_history_job *history;
    uint32_t payload_at;

    step->n_page_updates = c->n_pages;
    step->n_sampling_updates = c->n_sampling;
    step->n_history_jobs = c->n_history;
    memcpy(reserve(w, c->n_pages, sizeof *c->pages, &step->pages_at), c->pages, c->n_pages * sizeof *c->pages);
    sampling = reserve(w, c->n_sampling, sizeof *sampling, &step->sampling_at);
    history = reserve(w, c->n_history, sizeof *history, &step->history_at);
    memcpy(reserve(w, c->n_words, sizeof *c->payload, &payload_at), c->payload, c->n_words * sizeof *c->payload);
    for (uint32_t i = 0; i < c->n_sampling; i++) {
        sampling[i] = c->sampling[i];
        sampling[i].bias_at = payload_at + c->sampling[i].bias_at * (uint32_t)sizeof *c->payload;
        sampling[i].stop_at = payload_at + c->sampling[i].stop_at * (uint32_t)sizeof *c->payload;
    }
    for (uint32_t i = 0; i < c->n_history; i++) {
        history[i] = c->history[i];
        history[i].ids_at = payload_at + c->history[i].ids_at * (uint32_t)sizeof *c->payload;
    }
    c->n_pages = c->n_sampling = c->n_history = c->n_words = 0;
}

/* Sends the gathered changes ahead of the step, and waits until the block may be written again. */
static headrace_status flush(writer *w, headrace_error *err)
{
    hrk_step_begin_args args = hr_cuda_step_begin_args(w->cuda, 1);
    hrk_launch on = {.stream = w->cuda->stream, .n_sms = w->cuda->device.n_sms};

    w->step = (hrk_step){0};
    w->used = align_section(sizeof w->step);
    write_changes(w);
    memcpy(w->flight->upload, &w->step, sizeof w->step);
    HR_PASS(copy_block(w, err));
    HR_CUDA_TRY(w->cuda, hrk_step_begin(&args, &on));
    HR_CUDA_TRY(w->cuda, cudaEventRecord(w->flight->ended, w->cuda->stream));
    HR_CUDA_TRY(w->cuda, cudaEventSynchronize(w->flight->ended));
    return HEADRACE_OK;
}

/* Room for so many words of payload. */
static headrace_status need_words(writer *w, uint32_t n, headrace_error *err)
{
    return w->cuda->changes.n_words + n > HR_CUDA_PAYLOAD_WORDS ? flush(w, err) : HEADRACE_OK;
}

static uint32_t add_words(hr_cuda_changes *c, const void *from, size_t n_words)
{
    uint32_t at = c->n_words;

    memcpy(c->payload + at, from, n_words * sizeof *c->payload);
    c->n_words += (uint32_t)n_words;
    return at;
}

/* ---------------------------------------------------------------- pages */

static headrace_status note_pages(writer *w, const hr_batch *batch, const hr_span *span, headrace_error *err)
{
    hr_cuda *cuda = w->cuda;
    hr_cuda_changes *c = &cuda->changes;
    uint32_t P = cuda->options.page_tokens, n = (span->start_position + span->n_rows + P - 1) / P;
    const uint32_t *pages = batch->pages + span->page_first;
    uint32_t *known = cuda->page_mirror + (size_t)span->state_slot * cuda->max_pages;

    if (memcmp(pages, known, n * sizeof *pages) == 0)
        return HEADRACE_OK;
    for (uint32_t i = 0; i < n; i++) {
        if (pages[i] == known[i])
            continue;
        if (c->n_pages == HR_CUDA_PAGE_UPDATES)
            HR_PASS(flush(w, err));
        c->pages[c->n_pages++] = (hrk_page_update){.slot = span->state_slot, .index = i, .page = pages[i]};
        known[i] = pages[i];
    }
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- sampling */

static bool looks_at_history(const hr_sampling_params *p)
{
    return p->repetition_penalty != 1.0f || p->presence_penalty != 0.0f || p->frequency_penalty != 0.0f;
}

/* Where a row's sampling parameters and penalty counts lie. */
static uint32_t sampling_slot(const hr_output *output, const hr_span *span)
{
    return output->sampling_slot > 0 ? output->sampling_slot - 1 : span->state_slot;
}

static headrace_status note_sampling(writer *w, const hr_output *output, const hr_span *span, headrace_error *err)
{
    hr_cuda_changes *c = &w->cuda->changes;
    uint32_t at = sampling_slot(output, span);
    hr_cuda_slot *slot = &w->cuda->slots[at];
    const hr_sampling_params *p = output->sampling;
    hrk_sampling_update u = {.slot = at};

    if (slot->sampling_owner == span->sequence)
        return HEADRACE_OK;
    if (p->n_bias > HRK_BIAS_MAX || p->n_stop_ids > HRK_STOP_IDS_MAX)
        return hr_fail(err, HEADRACE_E_ENGINE, "%u biases and %u stop ids; a GPU holds %d and %d", p->n_bias,
                       p->n_stop_ids, HRK_BIAS_MAX, HRK_STOP_IDS_MAX);
    _Static_assert(sizeof(headrace_bias) == sizeof(hrk_bias), "biases are copied as they are");
    HR_PASS(need_words(w, 2 * p->n_bias + p->n_stop_ids, err));
    u.sampling = (hrk_sampling){.temperature = p->temperature,
                                .top_p = p->top_p,
                                .min_p = p->min_p,
                                .repetition_penalty = p->repetition_penalty,
                                .presence_penalty = p->presence_penalty,
                                .frequency_penalty = p->frequency_penalty,
                                .top_k = p->top_k,
                                .min_tokens = p->min_tokens,
                                .seed = p->seed,
                                .n_bias = p->n_bias,
                                .n_stop_ids = p->n_stop_ids};
    u.bias_at = p->n_bias > 0 ? add_words(c, p->bias, (size_t)2 * p->n_bias) : 0;
    u.stop_at = p->n_stop_ids > 0 ? add_words(c, p->stop_ids, p->n_stop_ids) : 0;
    c->sampling[c->n_sampling++] = u;
    slot->sampling_owner = span->sequence;
    return HEADRACE_OK;
}

/* Sends ids [first, end) of a history, in as many pieces as blocks ask for. */
static headrace_status send_history(writer *w, uint32_t slot, const hr_history *history, uint32_t first, uint32_t end,
                                    headrace_error *err)
{
    hr_cuda_changes *c = &w->cuda->changes;
    bool reset = first == 0;

    do {
        uint32_t room, n, n_prompt;

        if (c->n_words == HR_CUDA_PAYLOAD_WORDS)
            HR_PASS(flush(w, err));
        room = HR_CUDA_PAYLOAD_WORDS - c->n_words;
        n = end - first < room ? end - first : room;
        n_prompt = first >= history->n_prompt ? 0 : history->n_prompt - first < n ? history->n_prompt - first : n;
        c->history[c->n_history++] = (hrk_history_job){.slot = slot,
                                                       .reset = reset,
                                                       .ids_at = n > 0 ? add_words(c, history->ids + first, n) : 0,
                                                       .n_prompt = n_prompt,
                                                       .n_output = n - n_prompt};
        reset = false;
        first += n;
    } while (first < end);
    return HEADRACE_OK;
}

/* A span's own slot has counted ids that are the sequence's for good, and may lack some; the history of a row with a
 * slot of its own may hold guesses, and is sent whole each time. */
static headrace_status note_history(writer *w, const hr_output *output, const hr_span *span, headrace_error *err)
{
    uint32_t at = sampling_slot(output, span);
    hr_cuda_slot *slot = &w->cuda->slots[at];
    const hr_history *h = &output->history;
    uint32_t n_output = h->n_total - h->n_prompt;

    if (looks_at_history(output->sampling)) {
        bool is_known = slot->history_owner == span->sequence && slot->history_prompt == h->n_prompt &&
                        slot->history_output <= n_output && output->sampling_slot == 0;

        if (!is_known || slot->history_output < n_output) {
            if (h->n_pending > 0)
                return hr_fail(err, HEADRACE_E_ENGINE,
                               "slot %u: %u ids of its history are not known yet, and the GPU does not have them", at,
                               h->n_pending);
            HR_PASS(send_history(w, at, h, is_known ? h->n_prompt + slot->history_output : 0, h->n_total, err));
        }
        slot->history_owner = output->sampling_slot == 0 ? span->sequence : 0;
        slot->history_prompt = h->n_prompt;
        slot->history_output = n_output + 1; /* the device counts what it samples */
    } else {
        slot->history_owner = 0;
    }
    w->cuda->slot_token[at] = 0;
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- the batch */

/* Decode rows come first and mostly take what the device sampled itself: those need no id. */
static void write_tokens(writer *w, const hr_batch *batch)
{
    uint32_t n = 0;
    int32_t *tokens;

    while (n < batch->n_rows && batch->token_ids[n] == HR_TOKEN_FROM_SLOT)
        n++;
    w->step.n_slot_rows = n;
    tokens = reserve(w, batch->n_rows - n, sizeof *tokens, &w->step.tokens_at);
    memcpy(tokens, batch->token_ids + n, (batch->n_rows - n) * sizeof *tokens);
}

static void write_spans(writer *w, const hr_batch *batch)
{
    hrk_span *to = reserve(w, batch->n_spans, sizeof *to, &w->step.spans_at);

    for (uint32_t i = 0; i < batch->n_spans; i++) {
        const hr_span *span = &batch->spans[i];
        hr_cuda_slot *slot = &w->cuda->slots[span->state_slot];

        to[i] = (hrk_span){.first_row = span->first_row,
                           .n_rows = span->n_rows,
                           .start_position = span->start_position,
                           .slot = span->state_slot,
                           .state_in = span->is_fresh ? -1 : (int32_t)(2 * span->state_slot + slot->parity),
                           .state_out = (int32_t)(2 * span->state_slot + (1 - slot->parity)),
                           .n_warmup = span->n_warmup};
        slot->parity = 1 - slot->parity;
    }
}

static void write_outputs(writer *w, const hr_batch *batch)
{
    hrk_output *to = reserve(w, batch->n_outputs, sizeof *to, &w->step.outputs_at);

    for (uint32_t i = 0; i < batch->n_outputs; i++) {
        const hr_output *output = &batch->outputs[i];

        uint32_t n_logprobs = (uint32_t)(output->n_logprobs < HRK_TOP_MAX ? output->n_logprobs + 1 : HRK_TOP_MAX + 1);

        to[i] = (hrk_output){.row = output->row,
                             .slot = sampling_slot(output, &batch->spans[w->cuda->row_span[output->row]]),
                             .score_id = output->score_id,
                             .n_logprobs = n_logprobs & 0x7f,
                             .draw = (output->history.n_total - output->history.n_prompt) & 0xffffff,
                             .is_sampled = output->score_id < 0 && output->sampling != NULL};
    }
}

static void write_prefill_tiles(writer *w, const hr_batch *batch, hr_cuda_shape *shape)
{
    uint32_t n = 0;
    hrk_prefill_tile *to = reserve(w, shape->max_prefill_tiles, sizeof *to, &w->step.prefill_at);

    for (uint32_t i = 0; i < batch->n_spans; i++) {
        const hr_span *span = &batch->spans[i];
        uint32_t end = span->n_prompt > span->start_position ? span->n_prompt - span->start_position : 0;

        end = end < span->n_rows ? end : span->n_rows;
        for (uint32_t first = 0; first < end; first += HRK_PREFILL_TILE)
            to[n++] = (hrk_prefill_tile){.first_row = span->first_row + first,
                                         .n_rows = end - first < HRK_PREFILL_TILE ? end - first : HRK_PREFILL_TILE,
                                         .slot = span->state_slot,
                                         .first_position = span->start_position + first};
    }
    w->step.n_prefill_tiles = n;
}

/* Rounds of decode items: rounds[r] names where each begins. */
typedef struct round_list {
    hrk_step *steps; /* in the block; only the fields of attention are set here */
    uint32_t n;
} round_list;

static void write_decode_items(writer *w, const hr_batch *batch, uint32_t n_items, round_list *rounds)
{
    hrk_decode_item *to = reserve(w, n_items, sizeof *to, &w->step.decode_at);
    hrk_step *round = &rounds->steps[0];
    uint32_t n = 0;

    *round = (hrk_step){.decode_at = w->step.decode_at};
    rounds->n = 1;
    for (uint32_t i = 0; i < batch->n_spans; i++) {
        const hr_span *span = &batch->spans[i];

        for (uint32_t r = 0; r < span->n_rows; r++) {
            uint32_t n_keys = span->start_position + r + 1;
            uint32_t chunks = (n_keys + HRK_DECODE_CHUNK - 1) / HRK_DECODE_CHUNK;

            if (n_keys <= span->n_prompt)
                continue;
            if (round->n_chunk_items + chunks > w->cuda->max_chunk_items) {
                HR_ASSERT(rounds->n < w->cuda->max_rounds);
                round = &rounds->steps[rounds->n++];
                *round = (hrk_step){.decode_at = w->step.decode_at + n * (uint32_t)sizeof *to};
            }
            to[n++] = (hrk_decode_item){.row = span->first_row + r,
                                        .slot = span->state_slot,
                                        .n_keys = n_keys,
                                        .first_chunk = round->n_chunk_items};
            round->n_decode_items++;
            round->n_chunk_items += chunks;
        }
    }
    HR_ASSERT(n == n_items);
}

/* Round r's table is the step's with its own items; offsets count from the table itself. */
static void write_rounds(const writer *w, const round_list *rounds)
{
    for (uint32_t r = 0; r < rounds->n; r++) {
        hrk_step own = rounds->steps[r], *step = &rounds->steps[r];
        uint32_t back = r * (uint32_t)sizeof own;

        *step = w->step;
        step->n_decode_items = own.n_decode_items;
        step->n_chunk_items = own.n_chunk_items;
        step->decode_at = own.decode_at - back;
        step->n_prefill_tiles = r == 0 ? w->step.n_prefill_tiles : 0;
        step->tokens_at -= back;
        step->spans_at -= back;
        step->outputs_at -= back;
        step->pages_at -= back;
        step->sampling_at -= back;
        step->history_at -= back;
        step->prefill_at -= back;
    }
}

/* Rows of each kind of attention, and how many rounds and tiles they take at most. */
static uint32_t count_attention(const hr_cuda *cuda, const hr_batch *batch, hr_cuda_shape *shape,
                                uint32_t *n_rounds_max)
{
    uint32_t n_decode = 0, longest = 1;
    uint64_t n_chunks = 0;

    shape->max_prefill_tiles = 0;
    for (uint32_t i = 0; i < batch->n_spans; i++) {
        const hr_span *span = &batch->spans[i];
        uint32_t prompt = span->n_prompt > span->start_position ? span->n_prompt - span->start_position : 0;
        uint32_t chunks = (span->start_position + span->n_rows + HRK_DECODE_CHUNK - 1) / HRK_DECODE_CHUNK;

        prompt = prompt < span->n_rows ? prompt : span->n_rows;
        shape->max_prefill_tiles += (prompt + HRK_PREFILL_TILE - 1) / HRK_PREFILL_TILE;
        n_decode += span->n_rows - prompt;
        n_chunks += (uint64_t)(span->n_rows - prompt) * chunks;
        longest = chunks > longest ? chunks : longest;
    }
    *n_rounds_max = (uint32_t)(n_chunks / (cuda->max_chunk_items - longest + 1)) + 1;
    return n_decode;
}

/* A slot's counts are those before its row, so that a second row with penalties would draw by the wrong ones. */
static headrace_status check_penalised(const writer *w, const hr_batch *batch, uint32_t i, headrace_error *err)
{
    const hr_output *output = &batch->outputs[i];
    uint32_t span = w->cuda->row_span[output->row];

    if (i == 0 || !looks_at_history(output->sampling) || !batch->outputs[i - 1].sampling ||
        w->cuda->row_span[batch->outputs[i - 1].row] != span ||
        sampling_slot(output, &batch->spans[span]) != sampling_slot(output - 1, &batch->spans[span]))
        return HEADRACE_OK;
    return hr_fail(err, HEADRACE_E_ENGINE,
                   "span %u: rows %u and %u are both sampled with penalties, and neither has a slot for it", span,
                   batch->outputs[i - 1].row, output->row);
}

static headrace_status note_changes(writer *w, const hr_batch *batch, headrace_error *err)
{
    for (uint32_t i = 0; i < batch->n_spans; i++)
        HR_PASS(note_pages(w, batch, &batch->spans[i], err));
    for (uint32_t i = 0; i < batch->n_outputs; i++) {
        const hr_output *output = &batch->outputs[i];
        const hr_span *span = &batch->spans[w->cuda->row_span[output->row]];

        if (!output->sampling || output->score_id >= 0)
            continue;
        HR_PASS(check_penalised(w, batch, i, err));
        HR_PASS(note_sampling(w, output, span, err));
        HR_PASS(note_history(w, output, span, err));
    }
    return HEADRACE_OK;
}

static headrace_status check(hr_cuda *cuda, const hr_batch *batch, headrace_error *err)
{
    const hr_batch_limits limits = {.options = &cuda->options,
                                    .n_pages = cuda->n_pages,
                                    .n_slots = cuda->n_slots,
                                    .max_context = cuda->max_context,
                                    .vocab_size = cuda->arch->vocab_size,
                                    .slot_token = cuda->slot_token};

    HR_PASS(hr_batch_check(&limits, batch, cuda->row_span, err));
    for (uint32_t i = 0; i < batch->n_spans; i++) {
        if (batch->spans[i].sequence == 0)
            return hr_fail(err, HEADRACE_E_ENGINE, "span %u: its sequence has no number", i);
    }
    return HEADRACE_OK;
}

headrace_status hr_cuda_upload(hr_cuda *cuda, hr_cuda_flight *flight, hr_cuda_shape *shape, headrace_error *err)
{
    const hr_batch *batch = flight->batch;
    writer w = {.cuda = cuda, .flight = flight};
    uint32_t n_decode, n_rounds_max;
    round_list rounds;

    HR_PASS(check(cuda, batch, err));
    *shape =
        (hr_cuda_shape){.max_rows = batch->n_rows, .max_outputs = batch->n_outputs, .has_head = batch->n_outputs > 0};
    HR_PASS(note_changes(&w, batch, err));
    n_decode = count_attention(cuda, batch, shape, &n_rounds_max);
    w.step = (hrk_step){.n_rows = batch->n_rows, .n_spans = batch->n_spans, .n_outputs = batch->n_outputs};
    w.used = align_section(n_rounds_max * sizeof(hrk_step));
    rounds.steps = (hrk_step *)(void *)flight->upload;
    write_tokens(&w, batch);
    write_spans(&w, batch);
    write_outputs(&w, batch);
    write_decode_items(&w, batch, n_decode, &rounds);
    write_prefill_tiles(&w, batch, shape);
    write_changes(&w);
    write_rounds(&w, &rounds);
    shape->n_rounds = rounds.n;
    shape->max_decode_items = n_decode;
    shape->max_chunk_items = n_decode > 0 ? cuda->max_chunk_items : 0;
    return copy_block(&w, err);
}
