/* Chat templates: the checkpoint's own Jinja text, run by a small interpreter that can do nothing but write text.
 *
 * Why an interpreter and not a fixed renderer per known template: the family's templates differ in small ways from
 * checkpoint to checkpoint and change after release, so any list keyed by name or hash is wrong the next month. A
 * template from a model file is untrusted: the language subset has no way to reach files, time beyond strftime_now, or
 * memory, and runs under limits of steps, depth and output bytes. A construct outside the subset is an error that names
 * it, its line, and the way out.
 *
 * Strings remember where they came from: template text may hold special tokens, message text may not. The rendering is
 * therefore ranges (see hr_text_range) and not only text. Immutable after open; render may run on any thread.
 */
#ifndef HR_TEXT_CHAT_TEMPLATE_H
#define HR_TEXT_CHAT_TEMPLATE_H

#include "base/buffer.h"
#include "text/tokenizer.h"

#include <jansson.h>

typedef struct hr_chat_template hr_chat_template;

/* Parses a template. name is used in messages. E_TEMPLATE names line and construct. */
headrace_status hr_chat_template_parse(const char *name, const char *text, size_t len, hr_chat_template **out,
                                       headrace_error *err);
void hr_chat_template_close(hr_chat_template *chat_template);

/* The text of a built-in template ("lfm2", "lfm2.5-instruct", "lfm2.5-8b-a1b", "lfm2.5-dated", "lfm2-vl"), or NULL. */
const char *hr_chat_template_builtin(const char *name);
const char *hr_chat_template_builtin_names(void); /* "lfm2, lfm2.5-instruct, ..." */

typedef struct hr_chat_rendering {
    hr_buffer text;
    hr_text_range *ranges; /* malloc'ed; their lengths add up to text.len */
    size_t n_ranges;
} hr_chat_rendering;

/* context: a JSON object with messages, tools (or null), add_generation_prompt, and any extra variables; bos_token and
 * eos_token are added from the tokenizer when absent. date_us: microseconds since the epoch for strftime_now, or
 * negative for now. Renders exactly the bytes jinja2 renders (trim_blocks, lstrip_blocks). E_TEMPLATE with the
 * template's own error text (raise_exception), or the operation and line that failed; E_ARGUMENT for a context without
 * messages. */
headrace_status hr_chat_template_render(const hr_chat_template *chat_template, const json_t *context, int64_t date_us,
                                        hr_chat_rendering *out, headrace_error *err);
void hr_chat_rendering_deinit(hr_chat_rendering *rendering);
/* Whether the prompt ends with an open <think>, so that the answer starts inside the reasoning. */
bool hr_chat_rendering_opens_reasoning(const hr_chat_rendering *rendering);

/* What a server must do to OpenAI messages before rendering, found by looking at the template: null content to "", text
 * parts flattened, tool call arguments parsed, tool_calls turned into text for templates that ignore them, reasoning
 * kept. request: the body of a chat completion; messages, tools, add_generation_prompt (default true),
 * continue_final_message and chat_template_kwargs are read. Returns a context for hr_chat_template_render, complete but
 * for bos_token and eos_token, as a new reference (json_decref), or NULL with E_ARGUMENT (param names the field,
 * "messages[2].content[0].type"). */
json_t *hr_chat_normalize(const hr_chat_template *chat_template, const json_t *request, headrace_error *err);

#endif
