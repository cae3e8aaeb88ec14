/* headrace run: one answer, or a chat on a terminal.
 *
 * The conversation is kept as a chat completion request (JSON), so that what a person types goes through the same
 * template code as what a client sends. Ctrl-C ends the answer under way, Ctrl-D the chat.
 */
#include "cli/program.h"

#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
}

typedef struct conversation {
    headrace_model *model;
    headrace_engine *engine;
    headrace_sampling sampling;
    json_t *request; /* {"messages": [...]} */
    bool is_raw;
} conversation;

static int set_sampling(const hr_options *options, conversation *c)
{
    uint32_t n;
    const char *const *stop = hr_option_list(options, "stop", &n);

    headrace_sampling_defaults(c->model, &c->sampling);
    c->sampling.max_tokens = hr_option_u32(options, "max-tokens");
    if (hr_option_given(options, "temperature"))
        c->sampling.temperature = (float)hr_option_real(options, "temperature");
    if (hr_option_given(options, "top-k"))
        c->sampling.top_k = (int32_t)hr_option_u32(options, "top-k");
    if (hr_option_given(options, "top-p"))
        c->sampling.top_p = (float)hr_option_real(options, "top-p");
    if (hr_option_given(options, "min-p"))
        c->sampling.min_p = (float)hr_option_real(options, "min-p");
    if (hr_option_given(options, "repetition-penalty"))
        c->sampling.repetition_penalty = (float)hr_option_real(options, "repetition-penalty");
    if (n > HEADRACE_STOP_MAX) {
        (void)fprintf(stderr, "headrace: --stop: %u given, at most %d\n", n, HEADRACE_STOP_MAX);
        return HR_EXIT_USAGE;
    }
    for (uint32_t i = 0; i < n; i++)
        c->sampling.stop[c->sampling.n_stop++] = stop[i];
    return HR_EXIT_OK;
}

static void add_message(conversation *c, const char *role, const char *text, size_t len)
{
    json_t *content = json_stringn_nocheck(text, len);

    (void)json_array_append_new(json_object_get(c->request, "messages"),
                                json_pack("{s:s, s:o}", "role", role, "content", content));
}

static headrace_status prompt_ids(const conversation *c, const char *raw_prompt, size_t raw_len, int32_t **ids,
                                  size_t *n, headrace_error *err)
{
    char *json;
    headrace_status status;

    if (c->is_raw)
        return headrace_encode(c->model, raw_prompt, raw_len, HEADRACE_ENCODE_BOS, ids, n, err);
    json = json_dumps(c->request, JSON_COMPACT);
    if (!json) {
        (void)snprintf(err->message, sizeof err->message, "the text is not valid UTF-8");
        return err->status = HEADRACE_E_ARGUMENT;
    }
    status = headrace_chat_render(c->model, json, strlen(json), 0, NULL, NULL, ids, n, err);
    free(json);
    return status;
}

/* Streams one answer to stdout and appends it to answer. The prompt is the conversation, or with --raw the given text.
 */
static int answer_once(conversation *c, const char *raw_prompt, size_t raw_len, hr_buffer *answer)
{
    headrace_request request;
    headrace_stream *stream = NULL;
    headrace_event event;
    headrace_error err = {0};
    headrace_status status;
    int32_t *ids = NULL;
    size_t n_ids;

    status = prompt_ids(c, raw_prompt, raw_len, &ids, &n_ids, &err);
    if (status == HEADRACE_OK) {
        headrace_request_init(&request);
        request.prompt_ids = ids;
        request.n_prompt_ids = n_ids;
        request.sampling = c->sampling;
        status = headrace_submit(c->engine, &request, &stream, &err);
    }
    headrace_free(ids);
    interrupted = 0;
    while (status == HEADRACE_OK || status == HEADRACE_E_TIMEOUT) {
        if (interrupted || ferror(stdout)) /* nobody reads on: main reports it */
            headrace_stream_cancel(stream);
        status = headrace_stream_next(stream, 100000, &event);
        if (status != HEADRACE_OK)
            continue;
        (void)fwrite(event.text, 1, event.text_len, stdout);
        (void)fflush(stdout);
        hr_buffer_add(answer, event.text, event.text_len);
        if (event.finish == HEADRACE_FINISH_ERROR) {
            err = event.error;
            status = err.status;
        }
    }
    headrace_stream_destroy(stream);
    if (stream)
        (void)putchar('\n');
    if (status == HEADRACE_E_CLOSED && err.status == HEADRACE_OK)
        return HR_EXIT_OK;
    if (err.status == HEADRACE_OK)
        err.status = status;
    return hr_report(&err);
}

/* Forgets everything after the first n messages. */
static void cut_messages(conversation *c, size_t n)
{
    json_t *messages = json_object_get(c->request, "messages");

    while (json_array_size(messages) > n)
        (void)json_array_remove(messages, json_array_size(messages) - 1);
}

/* One turn. A message that failed is taken back: a line that is not UTF-8, or a conversation that outgrew the context,
 * must not spoil every turn after it. */
static int chat_turn(conversation *c, const char *line, size_t len)
{
    size_t n_before = json_array_size(json_object_get(c->request, "messages"));
    hr_buffer answer = {0};
    int code;

    if (!c->is_raw)
        add_message(c, "user", line, len);
    code = answer_once(c, line, len, &answer);
    if (code != HR_EXIT_OK)
        cut_messages(c, n_before);
    else if (!c->is_raw)
        add_message(c, "assistant", answer.at ? answer.at : "", answer.len);
    hr_buffer_deinit(&answer);
    return code;
}

static int chat(conversation *c)
{
    size_t n_system = json_array_size(json_object_get(c->request, "messages"));
    char *line = NULL;
    size_t capacity = 0;
    ssize_t len;
    int code = HR_EXIT_OK;

    (void)fputs("Type a message; Ctrl-C stops an answer, Ctrl-D ends, /clear forgets.\n", stderr);
    while (code != HR_EXIT_DEVICE) {
        (void)fputs("> ", stderr);
        errno = 0;
        len = getline(&line, &capacity, stdin);
        if (len < 0 && errno == EINTR) { /* Ctrl-C at the prompt, or just after an answer: a fresh line */
            clearerr(stdin);
            (void)fputc('\n', stderr);
            continue;
        }
        if (len < 0 || ferror(stdout))
            break;
        while (len > 0 && (line[len - 1] == '\n' || line[len - 1] == '\r'))
            line[--len] = '\0';
        if (len == 0)
            continue;
        if (strcmp(line, "/clear") == 0)
            cut_messages(c, n_system);
        else
            code = chat_turn(c, line, (size_t)len);
    }
    free(line);
    (void)fputc('\n', stderr);
    return code;
}

static int run_conversation(const hr_options *options, conversation *c, const char *prompt)
{
    hr_buffer answer = {0};
    char *piped = NULL;
    size_t len = prompt ? strlen(prompt) : 0;
    int code;

    if (hr_option_text(options, "system"))
        add_message(c, "system", hr_option_text(options, "system"), strlen(hr_option_text(options, "system")));
    if (!prompt && isatty(STDIN_FILENO)) {
        struct sigaction action = {.sa_handler = on_interrupt};

        (void)sigaction(SIGINT, &action, NULL);
        return chat(c);
    }
    if (!prompt) { /* a pipe: everything on it is the one prompt */
        hr_buffer text = {0};
        char block[65536];
        size_t n;

        while ((n = fread(block, 1, sizeof block, stdin)) > 0)
            hr_buffer_add(&text, block, n);
        prompt = piped = hr_buffer_take(&text, &len);
        if (!piped)
            return hr_out_of_memory();
    }
    if (len == 0) {
        (void)fputs("headrace: the prompt is empty\n", stderr);
        free(piped);
        return HR_EXIT_USAGE;
    }
    if (!c->is_raw)
        add_message(c, "user", prompt, len);
    code = answer_once(c, prompt, len, &answer);
    hr_buffer_deinit(&answer);
    free(piped);
    return code;
}

int hr_cmd_run(int argc, char **argv)
{
    hr_options *options =
        hr_options_parse(argc, argv, HR_FOR_RUN, "[MODEL] [PROMPT]",
                         "One answer; without PROMPT a chat on a terminal, else the prompt comes from a pipe.", 0, 2);
    conversation c = {0};
    headrace_engine_options engine_options;
    headrace_model *draft = NULL;
    bool used = false;
    int code;

    hr_setup_log(options);
    code = hr_check_vllm_flags(options);
    hr_model_choice choice = {.chat_template = hr_option_text(options, "chat-template"),
                              .ignore_generation_config =
                                  strcmp(hr_option_text(options, "generation-config"), "none") == 0};
    if (code == HR_EXIT_OK)
        code = hr_open_model(options, &choice, &c.model, &used);
    if (code == HR_EXIT_OK)
        code = hr_check_dtype(options, c.model);
    if (code == HR_EXIT_OK) {
        hr_engine_options_from(options, &engine_options);
        engine_options.disable_prefix_caching = !hr_option_bool(options, "enable-prefix-caching");
        if (engine_options.max_num_seqs == 0)
            engine_options.max_num_seqs = 1; /* one person: all memory goes to one conversation */
        code = hr_speculation_from(options, &engine_options, &draft);
    }
    if (code == HR_EXIT_OK)
        code = hr_open_engine(options, c.model, &engine_options, &c.engine);
    if (code == HR_EXIT_OK) {
        if (hr_log_level(options) >= HEADRACE_LOG_DEBUG)
            hr_print_summary(c.model, c.engine);
        c.is_raw = hr_option_bool(options, "raw");
        c.request = json_pack("{s:[]}", "messages");
        code = set_sampling(options, &c);
        if (code == HR_EXIT_OK)
            code = run_conversation(options, &c, hr_options_argument(options, used ? 1 : 0));
        json_decref(c.request);
    }
    headrace_engine_close(c.engine);
    headrace_model_close(draft);
    headrace_model_close(c.model);
    hr_options_destroy(options);
    return code;
}
