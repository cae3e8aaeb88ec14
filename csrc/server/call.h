/* A completion request that is being served: its streams, its choices, and where the answer goes.
 *
 * call.c is its life (start, events, failure, end); call_answer.c writes whole answers, call_stream.c writes chunks. A
 * call lives on its connection's loop thread. One engine stream a prompt; each has n choices; choice number = prompt x
 * n + choice of the stream.
 */
#ifndef HR_SERVER_CALL_H
#define HR_SERVER_CALL_H

#include "server/context.h"
#include "server/openai_json.h"
#include "server/openai_request.h"
#include "server/prompt.h"

typedef struct hr_choice {
    uint32_t index;
    headrace_chat_parser *parser; /* NULL: text goes through as it is */
    hr_buffer text, reasoning;
    hr_buffer calls; /* entries of "tool_calls", joined by commas */
    hr_buffer ids;   /* entries of "token_ids" */
    hr_logprobs logprobs;
    uint32_t n_calls, n_tokens;
    bool has_begun;
    hr_slot *slot; /* from the first event to the last, or NULL */
    headrace_finish finish;
    int32_t stop_id, stop_string;
} hr_choice;

typedef struct hr_call hr_call;

typedef struct hr_call_stream {
    hr_call *call;
    headrace_stream *stream;
    uint32_t prompt_idx;
    bool has_prompt_logprobs;
    bool is_stalled; /* has events that wait for the client to read */
    uint32_t n_prompt_tokens, n_cached_tokens;
    uint64_t queue_us, ttft_us, total_us;
    uint64_t n_draft_tokens, n_accepted_tokens;
    hr_buffer prompt_logprobs; /* JSON */
    hr_logprobs echo;          /* the echoed prompt's */
    hr_buffer echo_text;
} hr_call_stream;

struct hr_call {
    hr_server *server;
    hr_loop *loop;
    hr_http_conn *conn;
    hr_openai_request request;
    hr_prompt_list prompts;
    char id[80];
    const char *model_name;
    int64_t created_s;
    bool is_chat, drops_output; /* drops_output: max_tokens 0, the engine's one token is not shown */
    bool wants_prompt_logprobs; /* asked for as such, not only for an echo */
    uint64_t n_logprobs;        /* that the answer could hold, over all prompts so far */
    uint32_t n_prompt_top;      /* how many alternatives then: an echo may need more */
    uint32_t n_entered;         /* depth of calls from the loop */
    bool is_ended;              /* its answer was given; freed when the stack is unwound */
    hr_call_stream *streams;
    uint32_t n_streams, n_open;
    hr_choice *choices;
    uint32_t n_choices;
    hr_buffer chunk_head; /* what every chunk begins with, up to the choice's number */
    uint64_t last_sent_us;
};

/* Reads the body of a request of a kind, with the model's sampling defaults, and checks the model's name. */
bool hr_read_request(hr_openai_request *request, hr_http_conn *conn, int kind, hr_api_error *error);
/* Whether name (NULL: any) is served here. */
bool hr_check_model(const hr_server *server, const char *name, hr_api_error *error);

/* An engine stream of a call has events. user is its hr_call_stream. */
void hr_call_pump(void *user);

/* What an event adds, after parting: for the writers. Strings may be empty. */
typedef struct hr_delta {
    const char *text, *reasoning;
    size_t text_len, reasoning_len;
    const headrace_tool_call *calls;
    uint32_t n_calls, first_call;
} hr_delta;

/* call_stream.c: append chunks to out. */
void hr_stream_head(hr_call *call);
void hr_stream_event(hr_call *call, hr_call_stream *stream, hr_choice *choice, const hr_delta *delta, hr_buffer *out);
void hr_stream_tail(hr_call *call, hr_buffer *out); /* usage, [DONE] */

/* call_answer.c */
void hr_choice_keep(hr_choice *choice, const hr_delta *delta);
void hr_answer_write(hr_call *call, hr_buffer *out);
const char *hr_finish_reason(const hr_call *call, const hr_choice *choice); /* NULL while it goes on */
void hr_stop_reason_write(const hr_call *call, const hr_choice *choice, hr_buffer *out);
void hr_answer_write_tool_call(hr_buffer *out, const headrace_tool_call *tool_call);
void hr_metrics_write(const hr_call *call, hr_buffer *out);
hr_usage hr_call_usage(const hr_call *call);

#endif
