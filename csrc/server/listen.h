/* Where the server listens: host names, addresses, unix sockets. */
#ifndef HR_SERVER_LISTEN_H
#define HR_SERVER_LISTEN_H

#include "server/context.h"

/* Binds options.host and options.port into server->listen_fds; fills url and unix_path. */
headrace_status hr_listen_bind(hr_server *server, headrace_error *err);
headrace_status hr_listen_start(hr_server *server, headrace_error *err);
void hr_listen_close(hr_server *server);

#endif
