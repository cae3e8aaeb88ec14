/* See chat_output.h.
 *
 * One buffer of undecided text and a state. Each turn of the loop takes a prefix off the buffer, or waits for more. In
 * a state that waits for a tag, all but the longest suffix that may begin the tag is released. White space in front of
 * a tool call block is dropped, so a run of it is held back too, up to a limit that keeps the rule the same however the
 * text is cut.
 */
#include "text/chat_output.h"
#include "base/rng.h"
#include "text/tool_call.h"

#include <stdlib.h>
#include <string.h>

#define THINK_OPEN "<think>"
#define THINK_CLOSE "</think>"
#define CALL_START "<|tool_call_start|>"
#define CALL_END "<|tool_call_end|>"

enum { MAX_HELD_SPACE = 64 };

void hr_chat_output_init(hr_chat_output *output, bool parse_reasoning, bool parse_tools, bool starts_in_reasoning,
                         uint64_t id_seed)
{
    *output = (hr_chat_output){.parse_reasoning = parse_reasoning, .parse_tools = parse_tools, .id_seed = id_seed};
    output->state = !parse_reasoning      ? HR_CHAT_OUTPUT_CONTENT
                    : starts_in_reasoning ? HR_CHAT_OUTPUT_REASONING
                                          : HR_CHAT_OUTPUT_START;
}

void hr_chat_output_deinit(hr_chat_output *output)
{
    for (size_t i = 0; i < output->n_calls; i++) {
        free(output->calls[i].name);
        free(output->calls[i].arguments);
    }
    free(output->calls);
    hr_buffer_deinit(&output->pending);
    hr_buffer_deinit(&output->content);
    hr_buffer_deinit(&output->reasoning);
    *output = (hr_chat_output){0};
}

void hr_chat_output_taken(hr_chat_output *output)
{
    hr_buffer_clear(&output->content);
    hr_buffer_clear(&output->reasoning);
    output->n_calls_taken = output->n_calls;
}

/* ---------------------------------------------------------------- calls */

static void write_id(char id[32], uint64_t seed, uint64_t number)
{
    static const char digits[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

    memcpy(id, "call_", 5);
    for (uint64_t i = 0; i < 24; i++)
        id[5 + i] = digits[hr_rng_at(hr_rng_key(seed, number), i) % 62];
    id[29] = '\0';
}

static void add_call(void *user, const char *name, size_t name_len, const char *arguments, size_t arguments_len)
{
    hr_chat_output *output = user;
    hr_tool_call *call;

    if (output->n_calls == output->n_calls_capacity) {
        size_t capacity = output->n_calls_capacity ? output->n_calls_capacity * 2 : 4;
        void *grown = realloc(output->calls, capacity * sizeof *output->calls);

        if (!grown) {
            output->failed = true;
            return;
        }
        output->calls = grown;
        output->n_calls_capacity = capacity;
    }
    call = &output->calls[output->n_calls];
    write_id(call->id, output->id_seed, output->n_calls);
    call->name = strndup(name, name_len);
    call->arguments = strndup(arguments, arguments_len);
    if (!call->name || !call->arguments) {
        free(call->name);
        free(call->arguments);
        output->failed = true;
        return;
    }
    output->n_calls++;
}

/* ---------------------------------------------------------------- the pending text */

static void release(hr_chat_output *output, hr_buffer *to, const char *text, size_t len)
{
    if (len == 0)
        return;
    if (to == &output->content)
        output->has_content = true;
    hr_buffer_add(to, text, len);
}

static void drop(hr_chat_output *output, size_t n)
{
    hr_buffer *pending = &output->pending;

    memmove(pending->at, pending->at + n, pending->len - n);
    pending->len -= n;
    pending->at[pending->len] = '\0';
    output->scanned = output->scanned > n ? output->scanned - n : 0;
}

static void enter(hr_chat_output *output, hr_chat_output_state state, size_t consumed)
{
    drop(output, consumed);
    output->scanned = 0;
    output->state = state;
}

/* Where tag begins in pending; false: not there, and all but its longest possible beginning at the end has been looked
 * through. */
static bool find_tag(hr_chat_output *output, const char *tag, size_t *at)
{
    const hr_buffer *pending = &output->pending;
    size_t len = strlen(tag), left;
    const char *found = memmem(pending->at + output->scanned, pending->len - output->scanned, tag, len);

    if (found) {
        *at = (size_t)(found - pending->at);
        return true;
    }
    left = pending->len - output->scanned < len - 1 ? pending->len - output->scanned : len - 1;
    while (left > 0 && memcmp(pending->at + pending->len - left, tag, left) != 0)
        left--;
    output->scanned = pending->len - left;
    return false;
}

/* ASCII only: a chunk may end inside a longer character. */
static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static size_t leading_space(const hr_buffer *buffer)
{
    size_t n = 0;

    while (n < buffer->len && is_space(buffer->at[n]))
        n++;
    return n;
}

/* Length of text[0, len) without white space at the end, of which at most MAX_HELD_SPACE bytes are cut. */
static size_t without_space(const char *text, size_t len)
{
    size_t least = len > MAX_HELD_SPACE ? len - MAX_HELD_SPACE : 0;

    while (len > least && is_space(text[len - 1]))
        len--;
    return len;
}

/* ---------------------------------------------------------------- one turn a state; false: wait for more text */

static bool turn_start(hr_chat_output *output)
{
    const hr_buffer *pending = &output->pending;
    size_t at = leading_space(pending), left = pending->len - at;
    size_t n = left < strlen(THINK_OPEN) ? left : strlen(THINK_OPEN);

    if (memcmp(pending->at + at, THINK_OPEN, n) != 0) {
        enter(output, HR_CHAT_OUTPUT_CONTENT, 0);
        return true;
    }
    if (n < strlen(THINK_OPEN))
        return false;
    enter(output, HR_CHAT_OUTPUT_REASONING, at + n);
    return true;
}

static bool turn_reasoning(hr_chat_output *output)
{
    size_t at;
    bool found = find_tag(output, THINK_CLOSE, &at);
    size_t end = found ? at : output->scanned;

    release(output, &output->reasoning, output->pending.at, end);
    if (found)
        enter(output, HR_CHAT_OUTPUT_CONTENT, at + strlen(THINK_CLOSE));
    else
        drop(output, end);
    return found;
}

static bool turn_content(hr_chat_output *output)
{
    const hr_buffer *pending = &output->pending;
    size_t at, end;

    if (!output->parse_tools) {
        release(output, &output->content, pending->at, pending->len);
        enter(output, HR_CHAT_OUTPUT_CONTENT, pending->len);
        return false;
    }
    if (find_tag(output, CALL_START, &at)) {
        /* The space stays in pending until the block is known to hold calls. */
        end = without_space(pending->at, at);
        release(output, &output->content, pending->at, end);
        drop(output, end);
        output->scanned = at - end + strlen(CALL_START);
        output->state = HR_CHAT_OUTPUT_CALL;
        return true;
    }
    end = without_space(pending->at, output->scanned);
    release(output, &output->content, pending->at, end);
    drop(output, end);
    return false;
}

/* pending: held space, CALL_START, calls, and from `end` on CALL_END if the block is closed. */
static void close_block(hr_chat_output *output, size_t end, size_t end_len)
{
    hr_buffer *pending = &output->pending;
    const char *start = memmem(pending->at, pending->len, CALL_START, strlen(CALL_START));
    const char *calls = start + strlen(CALL_START);

    if (hr_tool_calls_parse(calls, (size_t)(pending->at + end - calls), add_call, output) > 0) {
        enter(output, HR_CHAT_OUTPUT_AFTER, end + end_len);
        return;
    }
    release(output, &output->content, pending->at, end + end_len);
    enter(output, HR_CHAT_OUTPUT_CONTENT, end + end_len);
}

static bool turn_call(hr_chat_output *output)
{
    size_t at;

    if (!find_tag(output, CALL_END, &at))
        return false;
    close_block(output, at, strlen(CALL_END));
    return true;
}

static bool turn_after(hr_chat_output *output)
{
    const hr_buffer *pending = &output->pending;
    size_t at = leading_space(pending);

    if (at == pending->len)
        return false;
    if (pending->at[at] == '[' || pending->at[at] == '<') {
        enter(output, HR_CHAT_OUTPUT_WITHHELD, at);
        return true;
    }
    if (output->has_content)
        release(output, &output->content, "\n", 1);
    enter(output, HR_CHAT_OUTPUT_TAIL, at);
    return true;
}

/* Models are seen to write the calls again behind the block and close it again; everything through the last end tag
 * goes. */
static bool turn_withheld(hr_chat_output *output)
{
    size_t at;

    if (!find_tag(output, CALL_END, &at))
        return false;
    enter(output, HR_CHAT_OUTPUT_AFTER, at + strlen(CALL_END));
    return true;
}

/* Ordinary text: a later block is dropped like a repeated one, and so is white space at the end. */
static bool turn_tail(hr_chat_output *output)
{
    const hr_buffer *pending = &output->pending;
    size_t at, end;

    if (find_tag(output, CALL_START, &at)) {
        release(output, &output->content, pending->at, without_space(pending->at, at));
        enter(output, HR_CHAT_OUTPUT_WITHHELD, at);
        return true;
    }
    end = without_space(pending->at, output->scanned);
    release(output, &output->content, pending->at, end);
    drop(output, end);
    return false;
}

static void run(hr_chat_output *output)
{
    static bool (*const turns[])(hr_chat_output *) = {turn_start, turn_reasoning, turn_content, turn_call,
                                                      turn_after, turn_withheld,  turn_tail};

    while (output->pending.len > 0 && turns[output->state](output))
        continue;
}

void hr_chat_output_add(hr_chat_output *output, const char *text, size_t len)
{
    hr_buffer_add(&output->pending, text, len);
    if (output->pending.failed) {
        output->failed = true;
        return;
    }
    run(output);
    output->failed = output->failed || output->content.failed || output->reasoning.failed;
}

void hr_chat_output_finish(hr_chat_output *output)
{
    hr_buffer *pending = &output->pending;

    if (output->failed || pending->len == 0)
        return;
    if (output->state == HR_CHAT_OUTPUT_CALL)
        close_block(output, pending->len, 0);
    switch (output->state) {
    case HR_CHAT_OUTPUT_REASONING:
        release(output, &output->reasoning, pending->at, pending->len);
        break;
    case HR_CHAT_OUTPUT_START:
    case HR_CHAT_OUTPUT_CONTENT:
        release(output, &output->content, pending->at, pending->len);
        break;
    case HR_CHAT_OUTPUT_WITHHELD: /* it was not a repetition after all, unless it is a second block */
        if (pending->len >= strlen(CALL_START) && memcmp(pending->at, CALL_START, strlen(CALL_START)) == 0)
            break;
        if (output->has_content)
            release(output, &output->content, "\n", 1);
        release(output, &output->content, pending->at, without_space(pending->at, pending->len));
        break;
    case HR_CHAT_OUTPUT_TAIL:
        release(output, &output->content, pending->at, without_space(pending->at, pending->len));
        break;
    default:
        break;
    }
    hr_buffer_clear(pending);
    output->scanned = 0;
    output->failed = output->failed || output->content.failed || output->reasoning.failed;
}
