/* Small routes that only tell: the models, the version, whether we live, whether we take work, how much there is, what
 * the limits are; and the two texts that the program brings along, a page and a schema. */
#include "server/call.h"
#include "server/handlers.h"
#include "server/web.h"

#include <string.h>

static void reply_json(hr_http_conn *conn, int status, hr_buffer *body)
{
    hr_http_reply(conn, status, "application/json", NULL, body->at ? body->at : "", body->len);
    hr_buffer_deinit(body);
}

static void write_model(const hr_server *server, const char *name, hr_buffer *out)
{
    hr_buffer_add_text(out, "{\"id\":");
    hr_json_string(out, name, strlen(name));
    hr_buffer_printf(out, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"headrace\",\"root\":",
                     (long long)server->started_s);
    hr_json_string(out, server->model_name, strlen(server->model_name));
    hr_buffer_printf(out, ",\"parent\":null,\"max_model_len\":%u}", server->engine_info.max_model_len);
}

void hr_handle_models(hr_http_conn *conn, const char *rest)
{
    const hr_server *server = hr_http_loop(conn)->server;
    size_t n = server->options.n_model_names ? server->options.n_model_names : 1;
    hr_buffer body = {0};

    (void)rest;
    hr_buffer_add_text(&body, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < n; i++) {
        if (i)
            hr_buffer_add_char(&body, ',');
        write_model(server, server->options.n_model_names ? server->options.model_names[i] : server->model_name, &body);
    }
    hr_buffer_add_text(&body, "]}");
    reply_json(conn, 200, &body);
}

void hr_handle_model(hr_http_conn *conn, const char *rest)
{
    hr_buffer body = {0};
    hr_api_error error;

    if (!hr_check_model(hr_http_loop(conn)->server, rest, &error)) {
        hr_http_reply_error(conn, &error);
        return;
    }
    write_model(hr_http_loop(conn)->server, rest, &body);
    reply_json(conn, 200, &body);
}

void hr_handle_version(hr_http_conn *conn, const char *rest)
{
    hr_buffer body = {0};

    (void)rest;
    hr_buffer_printf(&body, "{\"version\":\"%s\"}", headrace_version());
    reply_json(conn, 200, &body);
}

static bool is_healthy(const hr_server *server)
{
    headrace_stats stats;

    headrace_engine_get_stats(server->engine, &stats);
    return stats.healthy;
}

static void reply_health(hr_http_conn *conn, bool refuses_when_draining)
{
    const hr_server *server = hr_http_loop(conn)->server;
    hr_api_error error;
    hr_buffer body = {0};

    if (!is_healthy(server)) {
        (void)hr_api_fail(&error, HR_API_ENGINE_DEAD, NULL, "The engine has failed; the server needs a restart.");
    } else if (refuses_when_draining && hr_server_phase(server) != HR_PHASE_SERVE) {
        (void)hr_api_fail(&error, HR_API_DRAINING, NULL, "The server is shutting down.");
    } else {
        hr_buffer_add_text(&body, "{\"status\":\"ok\"}");
        reply_json(conn, 200, &body);
        return;
    }
    hr_http_reply_error(conn, &error);
}

void hr_handle_health(hr_http_conn *conn, const char *rest)
{
    (void)rest;
    reply_health(conn, false);
}

void hr_handle_ready(hr_http_conn *conn, const char *rest)
{
    (void)rest;
    reply_health(conn, true);
}

void hr_handle_load(hr_http_conn *conn, const char *rest)
{
    headrace_stats stats;
    hr_buffer body = {0};

    (void)rest;
    headrace_engine_get_stats(hr_http_loop(conn)->server->engine, &stats);
    hr_buffer_printf(&body, "{\"server_load\":%u}", stats.n_running + stats.n_waiting);
    reply_json(conn, 200, &body);
}

/* ---------------------------------------------------------------- as llama-server tells it */

static void write_token(const hr_server *server, const char *name, int32_t id, hr_buffer *out)
{
    const char *bytes;
    size_t len;

    hr_buffer_printf(out, ",\"%s\":", name);
    if (id >= 0 && headrace_token_bytes(server->model, id, &bytes, &len, NULL))
        hr_json_string(out, bytes, len);
    else
        hr_buffer_add_text(out, "null");
}

static void write_number(hr_buffer *out, const char *name, double value)
{
    hr_buffer_printf(out, ",\"%s\":%.7g", name, value); /* float32: no more digits mean anything */
}

static void write_sampling(const hr_server *server, hr_buffer *out)
{
    headrace_sampling s;

    headrace_sampling_defaults(server->model, &s);
    hr_buffer_printf(out, "{\"top_k\":%d", s.top_k);
    write_number(out, "temperature", (double)s.temperature);
    write_number(out, "top_p", (double)s.top_p);
    write_number(out, "min_p", (double)s.min_p);
    write_number(out, "repeat_penalty", (double)s.repetition_penalty);
    write_number(out, "presence_penalty", (double)s.presence_penalty);
    write_number(out, "frequency_penalty", (double)s.frequency_penalty);
    hr_buffer_add_char(out, '}');
}

/* No file names: where a model lies is the operator's business. */
void hr_handle_props(hr_http_conn *conn, const char *rest)
{
    const hr_server *server = hr_http_loop(conn)->server;
    const headrace_engine_info *engine = &server->engine_info;
    const headrace_model_info *model = &server->model_info;
    const hr_server_options *options = &server->options;
    bool is_named = model->chat_template_name && !strchr(model->chat_template_name, '/');
    hr_buffer body = {0};

    (void)rest;
    hr_buffer_printf(&body, "{\"default_generation_settings\":{\"n_ctx\":%u,\"params\":", engine->max_model_len);
    write_sampling(server, &body);
    hr_buffer_add_text(&body, "},\"sampling_source\":");
    hr_json_string(&body, model->sampling_source, strlen(model->sampling_source));
    hr_buffer_printf(&body, ",\"total_slots\":%u,\"model_alias\":", engine->max_num_seqs);
    hr_json_string(&body, server->model_name, strlen(server->model_name));
    hr_buffer_add_text(&body, ",\"chat_template_name\":");
    if (is_named)
        hr_json_string(&body, model->chat_template_name, strlen(model->chat_template_name));
    else
        hr_buffer_add_text(&body, model->chat_template_name ? "\"file\"" : "null");
    write_token(server, "bos_token", model->bos_id, &body);
    write_token(server, "eos_token", model->n_eos_ids > 0 ? model->eos_ids[0] : -1, &body);
    hr_buffer_printf(&body,
                     ",\"modalities\":{\"vision\":false,\"audio\":false},\"limits\":{\"max_model_len\":%u,"
                     "\"max_num_seqs\":%u,\"max_num_batched_tokens\":%u,\"max_num_queued_reqs\":%u,\"max_n\":%u,"
                     "\"max_logprobs\":%u,\"max_body_bytes\":%llu},\"build_info\":\"headrace %s (%s, %s)\"}",
                     engine->max_model_len, engine->max_num_seqs, engine->max_num_batched_tokens,
                     engine->max_num_queued_reqs, options->max_n, options->max_logprobs,
                     (unsigned long long)options->max_body_bytes, headrace_version(), engine->device, engine->compute);
    reply_json(conn, 200, &body);
}

/* A sequence that has answered something tells its counts. One that is still in its prompt has no slot yet: as many
 * free slots as there are of them are shown as processing. */
void hr_handle_slots(hr_http_conn *conn, const char *rest)
{
    const hr_server *server = hr_http_loop(conn)->server;
    const headrace_engine_info *engine = &server->engine_info;
    headrace_stats stats;
    hr_buffer body = {0};
    uint32_t n_taken = 0, n_in_prompt;

    (void)rest;
    headrace_engine_get_stats(server->engine, &stats);
    for (uint32_t i = 0; i < engine->max_num_seqs; i++)
        n_taken += atomic_load(&server->slots[i].is_taken);
    n_in_prompt = stats.n_running > n_taken ? stats.n_running - n_taken : 0;
    for (uint32_t i = 0; i < engine->max_num_seqs; i++) {
        const hr_slot *slot = &server->slots[i];
        bool is_taken = atomic_load(&slot->is_taken), is_in_prompt = !is_taken && n_in_prompt > 0;

        n_in_prompt -= is_in_prompt;
        hr_buffer_printf(&body, "%c{\"id\":%u,\"n_ctx\":%u,\"is_processing\":%s", i > 0 ? ',' : '[', i,
                         engine->max_model_len, is_taken || is_in_prompt ? "true" : "false");
        if (is_taken)
            hr_buffer_printf(&body, ",\"n_prompt_tokens\":%u,\"n_prompt_tokens_cache\":%u,\"n_decoded\":%u",
                             atomic_load(&slot->n_prompt), atomic_load(&slot->n_cached), atomic_load(&slot->n_decoded));
        hr_buffer_add_char(&body, '}');
    }
    hr_buffer_add_char(&body, ']');
    reply_json(conn, 200, &body);
}

/* ---------------------------------------------------------------- texts of the program */

static void reply_text(hr_http_conn *conn, const char *text, const char *type, const char *extra_fields)
{
    hr_api_error error;

    if (text) {
        hr_http_reply(conn, 200, type, extra_fields, text, strlen(text));
        return;
    }
    (void)hr_api_fail(&error, HR_API_NOT_FOUND, NULL, "This server does not serve this path.");
    hr_http_reply_error(conn, &error);
}

void hr_handle_openapi(hr_http_conn *conn, const char *rest)
{
    (void)rest;
    reply_text(conn, hr_web_openapi, "application/json", NULL);
}

/* The page shows what a model wrote: it may load nothing, talk only to this server and stand in no other page. */
void hr_handle_page(hr_http_conn *conn, const char *rest)
{
    (void)rest;
    reply_text(conn, hr_http_loop(conn)->server->options.no_webui ? NULL : hr_web_page, "text/html; charset=utf-8",
               "Content-Security-Policy: default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
               "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
               "X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\nCache-Control: no-cache\r\n");
}
