/* Small routes that only tell: the models, the version, whether we live, whether we take work, how much there is. */
#include "server/call.h"
#include "server/handlers.h"

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
