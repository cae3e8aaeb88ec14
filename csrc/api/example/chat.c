/* Asks a model one question and writes the answer as it comes:  chat MODEL "QUESTION" */
#include "headrace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* {"messages":[{"role":"user","content":QUESTION}]}, with what JSON wants escaped. */
static char *make_request(const char *question)
{
    const char *head = "{\"messages\":[{\"role\":\"user\",\"content\":\"";
    char *json = malloc(strlen(head) + 6 * strlen(question) + 8), *at = json;

    if (!json)
        return NULL;
    at += sprintf(at, "%s", head);
    for (; *question; question++)
        at += (unsigned char)*question < 0x20 || *question == '"' || *question == '\\'
                  ? sprintf(at, "\\u%04x", (unsigned char)*question)
                  : sprintf(at, "%c", *question);
    (void)sprintf(at, "%s", "\"}]}");
    return json;
}

static headrace_status answer(headrace_engine *engine, headrace_model *model, int32_t *ids, size_t n_ids,
                              headrace_error *err)
{
    headrace_request request;
    headrace_stream *stream;
    headrace_event event;
    headrace_status status;

    headrace_request_init(&request);
    headrace_sampling_defaults(model, &request.sampling);
    request.prompt_ids = ids;
    request.n_prompt_ids = n_ids;
    request.sampling.temperature = 0;
    status = headrace_submit(engine, &request, &stream, err);
    if (status != HEADRACE_OK)
        return status;
    while ((status = headrace_stream_next(stream, UINT64_MAX, &event)) == HEADRACE_OK) {
        (void)fwrite(event.text, 1, event.text_len, stdout);
        (void)fflush(stdout);
        if (event.finish == HEADRACE_FINISH_ERROR)
            *err = event.error;
    }
    (void)putchar('\n');
    headrace_stream_destroy(stream);
    return status == HEADRACE_E_CLOSED ? err->status : status;
}

int main(int argc, char **argv)
{
    headrace_model_options options;
    headrace_model *model = NULL;
    headrace_engine *engine = NULL;
    headrace_error err = {.status = HEADRACE_OK};
    char *json = make_request(argc > 2 ? argv[2] : "Hello!");
    int32_t *ids = NULL;
    size_t n_ids = 0;

    headrace_model_options_init(&options);
    options.path = argc > 1 ? argv[1] : "tiny";
    if (json && headrace_model_open(&options, &model, &err) == HEADRACE_OK &&
        headrace_engine_open(model, NULL, &engine, &err) == HEADRACE_OK &&
        headrace_chat_render(model, json, strlen(json), 0, NULL, NULL, &ids, &n_ids, &err) == HEADRACE_OK)
        (void)answer(engine, model, ids, n_ids, &err);
    if (err.status != HEADRACE_OK)
        (void)fprintf(stderr, "chat: %s\n", err.message);
    headrace_free(ids);
    free(json);
    headrace_engine_close(engine);
    headrace_model_close(model);
    return err.status == HEADRACE_OK ? 0 : 1;
}
