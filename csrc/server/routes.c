/* See routes.h. */
#include "server/routes.h"

#include "server/context.h"
#include "server/handlers.h"

#include <string.h>
#include <strings.h>

typedef enum route_auth {
    AUTH_NONE = 0, /* says nothing about anybody's work */
    AUTH_KEY,
    AUTH_METRICS, /* a key where the operator asks for one */
} route_auth;

typedef struct route {
    const char *method, *pattern; /* a pattern that ends in * matches any longer path */
    void (*handle)(hr_http_conn *conn, const char *rest);
    route_auth auth;
    bool is_logged;
} route;

static const route routes[] = {
    {"POST", "/v1/chat/completions", hr_handle_chat, AUTH_KEY, true},
    {"POST", "/v1/completions", hr_handle_completions, AUTH_KEY, true},
    {"GET", "/v1/models", hr_handle_models, AUTH_KEY, true},
    {"GET", "/v1/models/*", hr_handle_model, AUTH_KEY, true},
    {"POST", "/tokenize", hr_handle_tokenize, AUTH_KEY, true},
    {"POST", "/detokenize", hr_handle_detokenize, AUTH_KEY, true},
    {"GET", "/health", hr_handle_health, AUTH_NONE, false},
    {"GET", "/ping", hr_handle_health, AUTH_NONE, false},
    {"GET", "/ready", hr_handle_ready, AUTH_NONE, false},
    {"GET", "/version", hr_handle_version, AUTH_NONE, false},
    {"GET", "/load", hr_handle_load, AUTH_NONE, false},
    {"GET", "/metrics", hr_handle_metrics, AUTH_METRICS, false},
    {"GET", "/props", hr_handle_props, AUTH_KEY, true},
    {"GET", "/slots", hr_handle_slots, AUTH_KEY, true},
    {"GET", "/openapi.json", hr_handle_openapi, AUTH_NONE, false},
    {"GET", "/", hr_handle_page, AUTH_NONE, false},
};
#define N_ROUTES (sizeof routes / sizeof *routes)
_Static_assert(N_ROUTES <= HR_ROUTES_MAX, "the metrics count routes in a table of fixed size");

const char *hr_route_name(uint32_t route_idx)
{
    return route_idx < N_ROUTES ? routes[route_idx].pattern : "unmatched";
}

bool hr_route_is_logged(uint32_t route_idx)
{
    return route_idx >= N_ROUTES || routes[route_idx].is_logged;
}

static bool matches(const route *entry, const char *path, const char **rest)
{
    size_t len = strlen(entry->pattern);

    *rest = "";
    if (entry->pattern[len - 1] != '*')
        return strcmp(entry->pattern, path) == 0;
    if (strncmp(entry->pattern, path, len - 1) != 0 || path[len - 1] == '\0')
        return false;
    *rest = path + len - 1;
    return true;
}

/* Looks at every byte of the key whatever the client sent, so that time tells nothing about where they differ. */
static bool equal_in_constant_time(const char *key, const char *given, size_t given_len)
{
    size_t len = strlen(key);
    unsigned difference = len != given_len;

    for (size_t i = 0; i < len; i++)
        difference |= (unsigned)(unsigned char)key[i] ^ (unsigned)(unsigned char)(given_len ? given[i % given_len] : 0);
    return difference == 0;
}

static bool is_authorized(const hr_server *server, const hr_http_parser *request)
{
    size_t len = 0;
    const char *value = hr_http_parser_field(request, "authorization", &len);
    bool found = false;

    if (server->options.n_api_keys == 0)
        return true;
    if (!value || len < 7 || strncasecmp(value, "Bearer ", 7) != 0)
        return false;
    for (size_t i = 0; i < server->options.n_api_keys; i++)
        found |= equal_in_constant_time(server->options.api_keys[i], value + 7, len - 7);
    return found;
}

static bool is_json(const hr_http_parser *request)
{
    static const char json[] = "application/json";
    size_t len = 0;
    const char *value = hr_http_parser_field(request, "content-type", &len);
    size_t n = sizeof json - 1;

    return value && len >= n && strncasecmp(value, json, n) == 0 && (len == n || value[n] == ';' || value[n] == ' ');
}

static bool is_plain(const hr_http_parser *request)
{
    size_t len = 0;
    const char *value = hr_http_parser_field(request, "content-encoding", &len);

    return !value || len == 0 || (len == 8 && strncasecmp(value, "identity", 8) == 0);
}

/* A preflight is answered for every known path; whether the origin may read is said by the CORS fields of http.c. */
static void answer_options(hr_http_conn *conn, const char *allowed)
{
    hr_buffer extra = {0};

    hr_buffer_printf(&extra,
                     "Allow: %s\r\nAccess-Control-Allow-Methods: %s\r\n"
                     "Access-Control-Allow-Headers: Authorization, Content-Type, x-request-id\r\n"
                     "Access-Control-Max-Age: 600\r\n",
                     allowed, allowed);
    hr_http_reply(conn, 204, NULL, extra.at, "", 0);
    hr_buffer_deinit(&extra);
}

static void refuse_method(hr_http_conn *conn, const char *allowed)
{
    hr_api_error error;
    hr_buffer body = {0}, extra = {0};

    (void)hr_api_fail(&error, HR_API_METHOD_NOT_ALLOWED, NULL, "This path answers %s only.", allowed);
    (void)atomic_fetch_add_explicit(&hr_http_loop(conn)->server->failures[error.code], 1, memory_order_relaxed);
    hr_api_error_json(&body, &error);
    hr_buffer_printf(&extra, "Allow: %s\r\n", allowed);
    hr_http_log_of(conn)->code = hr_api_code_text(error.code);
    hr_http_reply(conn, 405, "application/json", extra.at, body.at ? body.at : "", body.len);
    hr_buffer_deinit(&body);
    hr_buffer_deinit(&extra);
}

static void enter(hr_http_conn *conn, const route *entry, const char *rest)
{
    const hr_server *server = hr_http_loop(conn)->server;
    const hr_http_parser *request = hr_http_request(conn);
    bool needs_key = entry->auth == AUTH_KEY || (entry->auth == AUTH_METRICS && server->options.metrics_need_key);
    hr_api_error error;

    if (needs_key && !is_authorized(server, request))
        (void)hr_api_fail(&error, HR_API_INVALID_KEY, NULL, "A valid API key is needed: Authorization: Bearer KEY.");
    else if (strcmp(entry->method, "POST") == 0 && (!is_json(request) || !is_plain(request)))
        (void)hr_api_fail(&error, HR_API_MEDIA_TYPE, NULL,
                          "The body must be plain JSON: Content-Type: application/json, no Content-Encoding.");
    else {
        entry->handle(conn, rest);
        return;
    }
    hr_http_reply_error(conn, &error);
}

void hr_route(hr_http_conn *conn)
{
    const hr_http_parser *request = hr_http_request(conn);
    const char *method = request->method, *rest, *allowed = NULL;
    bool is_head = strcmp(method, "HEAD") == 0;
    hr_api_error error;

    for (uint32_t i = 0; i < N_ROUTES; i++) {
        if (!matches(&routes[i], request->path, &rest))
            continue;
        hr_http_set_route(conn, i);
        if (strcmp(routes[i].method, method) == 0 || (is_head && strcmp(routes[i].method, "GET") == 0)) {
            enter(conn, &routes[i], rest);
            return;
        }
        allowed = strcmp(routes[i].method, "GET") == 0 ? "GET, HEAD, OPTIONS" : "POST, OPTIONS";
    }
    if (allowed && strcmp(method, "OPTIONS") == 0) {
        answer_options(conn, allowed);
    } else if (allowed) {
        refuse_method(conn, allowed);
    } else {
        (void)hr_api_fail(&error, HR_API_NOT_FOUND, NULL, "There is no such path on this server.");
        hr_http_reply_error(conn, &error);
    }
}
