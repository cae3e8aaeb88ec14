/* The life of one choice: its ids, its pages, its slot, and how far it has come. Plain data; the scheduler moves it. */
#ifndef HR_ENGINE_SEQUENCE_H
#define HR_ENGINE_SEQUENCE_H

#include "backend/sampling.h"
#include "engine/kv_pages.h"
#include "engine/lookup.h"
#include "engine/pace.h"
#include "engine/state_slots.h"

/* One unit of priority is worth this much waiting; priorities beyond the limit count as the limit. */
#define HR_AGING_US_PER_PRIORITY 10000000
#define HR_PRIORITY_MAX 100

typedef enum hr_place {
    HR_PLACE_NOWHERE, /* not handed to the scheduler, or removed from it */
    HR_PLACE_HELD,    /* a sibling that waits until its leader's prompt is in the prefix cache */
    HR_PLACE_WAITING,
    HR_PLACE_RUNNING,
    HR_PLACE_LEAVING, /* removed, but a step in flight names what it holds; NOWHERE when that step is over */
} hr_place;

typedef struct hr_sequence hr_sequence;
struct hr_sequence {
    /* Set before the scheduler sees it, then constant. */
    uint32_t n_prompt;
    uint32_t capacity; /* n_prompt + max_tokens */
    int32_t *ids;      /* [capacity], prompt, then output; append-only; owned by the request */
    uint32_t *pages;   /* [ceil(capacity / P)], the page table; owned by the request */
    hr_sampling_params sampling;
    int32_t n_logprobs, n_prompt_logprobs; /* -1: none */
    uint64_t cache_salt;
    int64_t order_key;   /* hr_order_key; lower runs first */
    uint64_t serial;     /* breaks ties, unique */
    hr_sequence *leader; /* choice 0 of the request, or NULL; the scheduler forgets it when it releases the sibling */
    void *owner;
    uint32_t max_proposals; /* ids that may be proposed in a step; 0: none */
    hr_lookup lookup;       /* the proposer's by prompt lookup; its memory is the request's */

    /* The scheduler's, from here on. */
    hr_place place;
    hr_sequence *prev, *next;            /* in the waiting or leaving list; next alone among held siblings */
    hr_sequence *held_first, *held_last; /* siblings that wait for this leader */
    uint32_t n_total;                    /* ids known: prompt and output so far */
    uint32_t n_pending;                  /* ids after those, which steps in flight are sampling */
    uint32_t next_row;                   /* position of the next row to plan */
    uint32_t n_run;                      /* rows below it were run; those up to next_row are in flight */
    uint32_t n_in_flight;                /* steps in flight that have a span of it */
    uint32_t warmup_end;                 /* rows below it write no keys and values */
    bool is_fresh;                       /* the next row starts from a zero convolution state */
    uint32_t n_pages;                    /* page table entries in use */
    uint32_t n_published;                /* full pages already offered to the prefix cache */
    uint32_t n_scored;                   /* prompt logprobs delivered */
    uint32_t n_cached_tokens;            /* prompt tokens taken from the cache at the first admission */
    uint32_t state_slot;
    bool was_admitted;
    uint32_t
        n_proposed;    /* ids[n_total .. n_total + n_proposed) are guesses for the next plan; nobody else reads them */
    uint32_t n_repeat; /* rows from next_row on that were run before, and run again to rebuild the state after a guess
                          was wrong: they write no keys and values. 0: none */
    hr_pace pace;
};

/* Where a request stands in line: arrival time plus priority, as time. It does not depend on the present, so the order
 * of two requests never changes, and it ages: one that waited long enough comes before every newer one whatever its
 * priority. */
int64_t hr_order_key(int32_t priority, uint64_t arrival_us);

/* Whether a runs before b. */
static inline bool hr_sequence_is_before(const hr_sequence *a, const hr_sequence *b)
{
    return a->order_key != b->order_key ? a->order_key < b->order_key : a->serial < b->serial;
}
/* Rows still to plan before the next token can be sampled. 0: the last token it may have is already being sampled. */
static inline uint32_t hr_sequence_rows_left(const hr_sequence *sequence)
{
    uint32_t n = sequence->n_total + sequence->n_pending;

    return n < sequence->capacity ? n - sequence->next_row : 0;
}
/* All that is left are the rows of its next token: the one whose id was sampled last and those it has to repeat. */
static inline bool hr_sequence_is_ready(const hr_sequence *sequence)
{
    return hr_sequence_rows_left(sequence) == sequence->n_repeat + 1;
}
static inline uint32_t hr_sequence_n_output(const hr_sequence *sequence)
{
    return sequence->n_total - sequence->n_prompt;
}

/* Sets the scheduler's fields of a new sequence. */
void hr_sequence_start(hr_sequence *sequence);
/* How many of the ids sampled for its last known id and for n_proposed guesses after it (ids[n_total ..]) are the
 * answer's next tokens: up to and including the first that is not the guess behind it, ends the answer, or is bad. The
 * latter is counted too. sampled [n_proposed + 1]. >= 1. */
uint32_t hr_sequence_n_right(const hr_sequence *sequence, const hr_sample *sampled, uint32_t n_proposed);
/* Whether the answer ends with id as its output number n_before (from 0). *stop_id: the stop id, or -1. */
headrace_finish hr_sequence_finish_with(const hr_sequence *sequence, int32_t id, uint32_t n_before, int32_t *stop_id);
/* Appends a sampled id and says whether the sequence ends with it. *stop_id: the stop id, or -1. */
headrace_finish hr_sequence_accept(hr_sequence *sequence, int32_t id, int32_t *stop_id);

#endif
