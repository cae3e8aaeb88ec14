/* The family's prompt formats as Jinja, for checkpoints that bring no template (or a broken one) and for tests.
 *
 * Written from the format's description, not from the published files, and held to the published renderings byte for
 * byte by tests/data/chat_cases.json, failures included. docs/chat.md tells the five apart.
 */
#include "text/chat_template.h"

#include <string.h>

/* Shared openings and endings. A system turn is written when there is a system text or a tool list. */
#define SYSTEM_AND_REST                                                  \
    "{%- set state = namespace(system='', rest=messages, last=-1) -%}\n" \
    "{%- if messages[0]['role'] == 'system' -%}\n"                       \
    "  {%- set state.system = messages[0]['content'] -%}\n"              \
    "  {%- set state.rest = messages[1:] -%}\n"                          \
    "{%- endif -%}\n"
#define TOOL_LIST(open, close)                                                                                   \
    "{%- if tools -%}\n"                                                                                         \
    "  {%- set state.system = state.system + ('\\n' if state.system else '') + 'List of tools: " open "[' -%}\n" \
    "  {%- for tool in tools -%}\n"                                                                              \
    "    {%- set state.system = state.system + ('' if loop.first else ', ')\n"                                   \
    "          + (tool if tool is string else tool | tojson) -%}\n"                                              \
    "  {%- endfor -%}\n"                                                                                         \
    "  {%- set state.system = state.system + ']" close "' -%}\n"                                                 \
    "{%- endif -%}\n"
#define SYSTEM_TURN                                                        \
    "{%- if state.system -%}\n"                                            \
    "  {{- '<|im_start|>system\\n' + state.system + '<|im_end|>\\n' -}}\n" \
    "{%- endif -%}\n"
#define LAST_OF(role)                                                                               \
    "{%- for message in state.rest -%}\n"                                                           \
    "  {%- if message['role'] == '" role "' -%}{%- set state.last = loop.index0 -%}{%- endif -%}\n" \
    "{%- endfor -%}\n"
#define GENERATION_PROMPT "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}\n"

/* Text parts joined, images as their placeholder, other parts as JSON. Walking None or a number fails, as it should. */
#define CONTENT_MACRO                                                 \
    "{%- macro text_of(content) -%}\n"                                \
    "  {%- if content is string -%}\n"                                \
    "    {{- content -}}\n"                                           \
    "  {%- else -%}\n"                                                \
    "    {%- for part in content -%}\n"                               \
    "      {%- if part['type'] == 'image' -%}{{- '<image>' -}}\n"     \
    "      {%- elif part['type'] == 'text' -%}{{- part['text'] -}}\n" \
    "      {%- else -%}{{- part | tojson -}}{%- endif -%}\n"          \
    "    {%- endfor -%}\n"                                            \
    "  {%- endif -%}\n"                                               \
    "{%- endmacro -%}\n"
#define CALLS_MACRO(quote)                                                        \
    "{%- macro write_calls(calls) -%}\n"                                          \
    "  {{- '<|tool_call_start|>[' -}}\n"                                          \
    "  {%- for call in calls -%}\n"                                               \
    "    {{- ('' if loop.first else ', ') + call['function']['name'] + '(' -}}\n" \
    "    {%- for key, value in call['function']['arguments'].items() -%}\n"       \
    "      {{- ('' if loop.first else ', ') + key + '=' -}}\n"                    \
    "      {%- if value is string -%}{{- " quote " + value + " quote " -}}\n"     \
    "      {%- elif value is mapping -%}{{- value | tojson -}}\n"                 \
    "      {%- else -%}{{- value | string -}}{%- endif -%}\n"                     \
    "    {%- endfor -%}\n"                                                        \
    "    {{- ')' -}}\n"                                                           \
    "  {%- endfor -%}\n"                                                          \
    "  {{- ']<|tool_call_end|>' -}}\n"                                            \
    "{%- endmacro -%}\n"
#define AFTER_THINKING                                                                   \
    "{%- macro after_thinking(text) -%}\n"                                               \
    "  {{- (text.split('</think>') | last | trim) if '</think>' in text else text -}}\n" \
    "{%- endmacro -%}\n"

static const char lfm2[] =
    "{{- bos_token -}}\n" SYSTEM_AND_REST TOOL_LIST("<|tool_list_start|>", "<|tool_list_end|>") SYSTEM_TURN
    "{%- for message in state.rest -%}\n"
    "  {%- set text = message['content'] if message['content'] is string else message['content'] | tojson -%}\n"
    "  {{- '<|im_start|>' + message['role'] + '\\n' -}}\n"
    "  {%- if message['role'] == 'tool' -%}\n"
    "    {{- '<|tool_response_start|>' + text + '<|tool_response_end|>' -}}\n"
    "  {%- else -%}\n"
    "    {{- text -}}\n"
    "  {%- endif -%}\n"
    "  {{- '<|im_end|>\\n' -}}\n"
    "{%- endfor -%}\n" GENERATION_PROMPT;

static const char lfm25_instruct[] =
    "{{- bos_token -}}\n" AFTER_THINKING SYSTEM_AND_REST TOOL_LIST("", "") SYSTEM_TURN LAST_OF(
        "assistant") "{%- for message in state.rest -%}\n"
                     "  {%- set text = message['content'] if message['content'] is string else message['content'] | "
                     "tojson -%}\n"
                     "  {%- set is_past = message['role'] == 'assistant' and loop.index0 != state.last -%}\n"
                     "  {{- '<|im_start|>' + message['role'] + '\\n' -}}\n"
                     "  {{- after_thinking(text) if is_past and not keep_past_thinking else text -}}\n"
                     "  {{- '<|im_end|>\\n' -}}\n"
                     "{%- endfor -%}\n" GENERATION_PROMPT;

static const char lfm25_8b_a1b[] = "{{- bos_token -}}\n" CONTENT_MACRO CALLS_MACRO("\"'\"") AFTER_THINKING
    "{%- set state = namespace(system='', rest=messages, last=-1) -%}\n"
    "{%- if messages[0]['role'] == 'system' -%}\n"
    "  {%- if messages[0].get('content') -%}{%- set state.system = text_of(messages[0]['content']) -%}{%- endif -%}\n"
    "  {%- set state.rest = messages[1:] -%}\n"
    "{%- endif -%}\n" TOOL_LIST("", "")
        SYSTEM_TURN LAST_OF("user") "{%- for message in state.rest -%}\n"
                                    "  {{- '<|im_start|>' + message['role'] + '\\n' -}}\n"
                                    "  {%- if message['role'] == 'assistant' -%}\n"
                                    "    {%- set keeps = preserve_thinking or loop.index0 > state.last -%}\n"
                                    "    {%- if keeps and message['thinking'] is defined -%}\n"
                                    "      {{- '<think>' + message['thinking'] + '</think>' -}}\n"
                                    "    {%- endif -%}\n"
                                    "    {%- if message['content'] is defined -%}\n"
                                    "      {%- set text = text_of(message['content']) -%}\n"
                                    "      {{- text if keeps else after_thinking(text) -}}\n"
                                    "    {%- endif -%}\n"
                                    "    {%- if message['tool_calls'] is defined -%}{{- "
                                    "write_calls(message['tool_calls']) -}}{%- endif -%}\n"
                                    "  {%- elif message.get('content') -%}\n"
                                    "    {{- text_of(message['content']) -}}\n"
                                    "  {%- endif -%}\n"
                                    "  {{- '<|im_end|>\\n' -}}\n"
                                    "{%- endfor -%}\n" GENERATION_PROMPT;

static const char lfm25_dated[] = "{{- bos_token -}}\n" CONTENT_MACRO CALLS_MACRO("'\"'") AFTER_THINKING
    "{%- set state = namespace(system='', rest=messages, last=-1) -%}\n"
    "{%- if messages[0]['role'] == 'system' -%}\n"
    "  {%- if messages[0].get('content') -%}{%- set state.system = text_of(messages[0]['content']) -%}{%- endif -%}\n"
    "  {%- set state.rest = messages[1:] -%}\n"
    "{%- endif -%}\n"
    "{%- if tools -%}\n"
    "  {%- set state.system = state.system + ('\\n\\n' if state.system else '')\n"
    "        + \"Today's date: \" + strftime_now('%Y-%m-%d') + '\\n\\nList of tools: ' + (tools | tojson) -%}\n"
    "{%- endif -%}\n" SYSTEM_TURN LAST_OF(
        "assistant") "{%- for message in state.rest -%}\n"
                     "  {{- '<|im_start|>' + message['role'] + '\\n' -}}\n"
                     "  {%- if message['role'] == 'assistant' -%}\n"
                     "    {%- set keeps = keep_past_thinking or loop.index0 == state.last -%}\n"
                     "    {%- if keeps and message['thinking'] is defined -%}\n"
                     "      {{- '<think>' + message['thinking'] + '</think>' -}}\n"
                     "    {%- endif -%}\n"
                     "    {%- if message['tool_calls'] is defined -%}{{- write_calls(message['tool_calls']) -}}{%- "
                     "endif -%}\n"
                     "    {%- if message['content'] is defined -%}\n"
                     "      {%- set text = text_of(message['content']) -%}\n"
                     "      {{- text if keeps else after_thinking(text) -}}\n"
                     "      {%- if not (continue_final_message and loop.last) -%}{{- '<|im_end|>\\n' -}}{%- endif -%}\n"
                     "    {%- endif -%}\n"
                     "  {%- else -%}\n"
                     "    {%- if message.get('content') -%}{{- text_of(message['content']) -}}{%- endif -%}\n"
                     "    {{- '<|im_end|>\\n' -}}\n"
                     "  {%- endif -%}\n"
                     "{%- endfor -%}\n" GENERATION_PROMPT;

static const char lfm2_vl[] =
    "{{- bos_token -}}\n" CONTENT_MACRO "{%- for message in messages -%}\n"
    "  {{- '<|im_start|>' + message['role'] + '\\n' + text_of(message['content']) + '<|im_end|>\\n' -}}\n"
    "{%- endfor -%}\n" GENERATION_PROMPT;

static const struct {
    const char *name, *text;
} templates[] = {
    {"lfm2", lfm2},
    {"lfm2.5-instruct", lfm25_instruct},
    {"lfm2.5-8b-a1b", lfm25_8b_a1b},
    {"lfm2.5-dated", lfm25_dated},
    {"lfm2-vl", lfm2_vl},
};

const char *hr_chat_template_builtin(const char *name)
{
    for (size_t i = 0; i < sizeof templates / sizeof *templates; i++) {
        if (strcmp(templates[i].name, name) == 0)
            return templates[i].text;
    }
    return NULL;
}

const char *hr_chat_template_builtin_names(void)
{
    return "lfm2, lfm2.5-instruct, lfm2.5-8b-a1b, lfm2.5-dated, lfm2-vl";
}
