/* Between the parts of the chat code; nobody else includes this. */
#ifndef HR_TEXT_CHAT_INTERNAL_H
#define HR_TEXT_CHAT_INTERNAL_H

#include "text/chat_template.h"
#include "text/jinja_ast.h"

/* A hidden key of a normalised message: lengths of the runs that its content consists of, template text first, then
 * data, and so on in turn. It lets <|tool_call_start|> in front of a call that the server wrote stay a special token
 * while the same characters from a client do not become one. hr_chat_normalize removes it from what clients send;
 * rendering never shows it to the template. */
#define HR_CHAT_CONTENT_RUNS "\x01content_runs"

const hr_jinja_mentions *hr_chat_template_mentions(const hr_chat_template *chat_template);

#endif
