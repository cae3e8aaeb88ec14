/* What routes.c calls. Every handler answers through hr_http_reply or by handing the connection to a call. `rest` is
 * what a path pattern's trailing star stood for. */
#ifndef HR_SERVER_HANDLERS_H
#define HR_SERVER_HANDLERS_H

#include "server/http.h"

void hr_handle_chat(hr_http_conn *conn, const char *rest);
void hr_handle_completions(hr_http_conn *conn, const char *rest);
void hr_handle_models(hr_http_conn *conn, const char *rest);
void hr_handle_model(hr_http_conn *conn, const char *rest);
void hr_handle_tokenize(hr_http_conn *conn, const char *rest);
void hr_handle_detokenize(hr_http_conn *conn, const char *rest);
void hr_handle_health(hr_http_conn *conn, const char *rest);
void hr_handle_ready(hr_http_conn *conn, const char *rest);
void hr_handle_version(hr_http_conn *conn, const char *rest);
void hr_handle_load(hr_http_conn *conn, const char *rest);
void hr_handle_metrics(hr_http_conn *conn, const char *rest);
void hr_handle_props(hr_http_conn *conn, const char *rest);
void hr_handle_slots(hr_http_conn *conn, const char *rest);
void hr_handle_openapi(hr_http_conn *conn, const char *rest);
void hr_handle_page(hr_http_conn *conn, const char *rest);

#endif
