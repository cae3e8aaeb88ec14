/* What a model says, parted as the OpenAI wire format wants it: reasoning, content, tool calls.
 *
 * Streaming: text is fed as it comes and parts come out; tags that span tokens are held back while they may become one.
 * The parts depend on the text alone, never on how it was cut. Grammar and rules: docs/chat.md. In caller's storage;
 * one owner.
 */
#ifndef HR_TEXT_CHAT_OUTPUT_H
#define HR_TEXT_CHAT_OUTPUT_H

#include "base/buffer.h"

typedef struct hr_tool_call {
    char id[32];     /* "call_" + 24 characters, from the seed given to init and the call's number */
    char *name;      /* malloc'ed */
    char *arguments; /* malloc'ed JSON text of an object */
} hr_tool_call;

typedef enum hr_chat_output_state {
    HR_CHAT_OUTPUT_START,     /* nothing but white space so far; <think> may come */
    HR_CHAT_OUTPUT_REASONING, /* inside <think> */
    HR_CHAT_OUTPUT_CONTENT,
    HR_CHAT_OUTPUT_CALL,     /* inside the tool call block */
    HR_CHAT_OUTPUT_AFTER,    /* behind it, before any text */
    HR_CHAT_OUTPUT_WITHHELD, /* behind it, in text that looks like the calls repeated */
    HR_CHAT_OUTPUT_TAIL,     /* behind it, in ordinary text */
} hr_chat_output_state;

typedef struct hr_chat_output {
    bool parse_reasoning, parse_tools;
    bool failed; /* out of memory: what follows is incomplete */
    hr_chat_output_state state;
    uint64_t id_seed;
    hr_buffer pending;            /* held back */
    size_t scanned;               /* bytes of pending in which the awaited tag does not begin */
    hr_buffer content, reasoning; /* released since the last hr_chat_output_taken */
    bool has_content;             /* content was released at any time */
    hr_tool_call *calls;          /* all so far */
    size_t n_calls, n_calls_capacity;
    size_t n_calls_taken; /* already handed to the client */
} hr_chat_output;

/* starts_in_reasoning: the rendered prompt ended with an open <think> (hr_chat_rendering_opens_reasoning). */
void hr_chat_output_init(hr_chat_output *output, bool parse_reasoning, bool parse_tools, bool starts_in_reasoning,
                         uint64_t id_seed);
void hr_chat_output_deinit(hr_chat_output *output);
void hr_chat_output_add(hr_chat_output *output, const char *text, size_t len);
/* The end: releases what was held back; an unterminated call block counts; one that does not parse becomes content. */
void hr_chat_output_finish(hr_chat_output *output);
/* The client has everything: clears content and reasoning, and counts all calls as handed over. */
void hr_chat_output_taken(hr_chat_output *output);

#endif
