/* /tokenize and /detokenize in vLLM's shapes. */
#include "server/call.h"
#include "server/handlers.h"

#include <stdlib.h>

static void write_tokens(const hr_server *server, const hr_openai_request *request, const hr_prompt *prompt,
                         hr_buffer *out)
{
    hr_buffer_printf(out, "{\"count\":%zu,\"max_model_len\":%u,\"tokens\":", prompt->n_ids,
                     server->engine_info.max_model_len);
    hr_ids_write(out, prompt->ids, prompt->n_ids);
    if (request->return_token_strs) {
        hr_buffer_add_text(out, ",\"token_strs\":[");
        for (size_t i = 0; i < prompt->n_ids; i++) {
            const char *bytes = "";
            size_t len = 0;

            (void)headrace_token_bytes(server->model, prompt->ids[i], &bytes, &len, NULL);
            if (i)
                hr_buffer_add_char(out, ',');
            hr_json_string(out, bytes, len);
        }
        hr_buffer_add_char(out, ']');
    }
    hr_buffer_add_char(out, '}');
}

static void reply(hr_http_conn *conn, hr_buffer *body, bool ok, const hr_api_error *error)
{
    if (ok && !body->failed)
        hr_http_reply(conn, 200, "application/json", NULL, body->at, body->len);
    else
        hr_http_reply_error(conn, error);
    hr_buffer_deinit(body);
}

void hr_handle_tokenize(hr_http_conn *conn, const char *rest)
{
    const hr_server *server = hr_http_loop(conn)->server;
    const hr_http_parser *http = hr_http_request(conn);
    hr_api_error error = {.code = HR_API_ENGINE_ERROR, .message = "The server has no memory for this answer."};
    hr_openai_request request;
    hr_prompt_list prompts;
    hr_buffer body = {0};
    bool ok = false;

    (void)rest;
    if (hr_read_request(&request, conn, HR_FOR_TOKENIZE, &error)) {
        ok = hr_prompts_init(&prompts, server, &request, http->body.at, http->body.len, &error);
        if (ok) {
            write_tokens(server, &request, &prompts.at[0], &body);
            hr_prompts_deinit(&prompts);
        }
        hr_openai_request_deinit(&request);
    }
    reply(conn, &body, ok, &error);
}

static bool detokenize(const hr_server *server, const hr_openai_request *request, hr_buffer *body, hr_api_error *error)
{
    const json_t *tokens = json_object_get(request->body, "tokens");
    headrace_error failure = {0};
    int32_t *ids;
    size_t n_ids, len = 0;
    char *text = NULL;
    headrace_status status;

    if (!json_is_array(tokens))
        return hr_api_fail(error, HR_API_MISSING_FIELD, "tokens", "tokens is missing.");
    if (!hr_read_ids(tokens, "tokens", server->model_info.vocab_size, &ids, &n_ids, error))
        return false;
    status = headrace_decode(server->model, ids, n_ids, 0, &text, &len, &failure);
    free(ids);
    if (status != HEADRACE_OK)
        return hr_api_fail_library(error, &failure);
    hr_buffer_add_text(body, "{\"prompt\":");
    hr_json_string(body, text, len);
    hr_buffer_add_char(body, '}');
    headrace_free(text);
    return true;
}

void hr_handle_detokenize(hr_http_conn *conn, const char *rest)
{
    hr_api_error error = {.code = HR_API_ENGINE_ERROR, .message = "The server has no memory for this answer."};
    hr_openai_request request;
    hr_buffer body = {0};
    bool ok = false;

    (void)rest;
    if (hr_read_request(&request, conn, HR_FOR_DETOKENIZE, &error)) {
        ok = detokenize(hr_http_loop(conn)->server, &request, &body, &error);
        hr_openai_request_deinit(&request);
    }
    reply(conn, &body, ok, &error);
}
