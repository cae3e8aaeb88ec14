/* See listen.h. No SO_REUSEPORT: a second server on the port must fail, not share it. */
#include "server/listen.h"

#include "base/status.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG 4096

static headrace_status bind_failed(const char *where, int code, headrace_error *err)
{
    return hr_fail_param(err, HEADRACE_E_IO, code == EADDRINUSE ? "port in use" : "host", "cannot listen on %s: %s%s",
                         where, strerror(code), code == EADDRINUSE ? " (choose another with --port or --host)" : "");
}

/* A socket file that nobody listens to is left over from a kill; one that answers belongs to a living server. */
static bool is_stale(const struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct stat info;
    bool stale;

    if (fd < 0)
        return false;
    stale = stat(address->sun_path, &info) == 0 && S_ISSOCK(info.st_mode) &&
            connect(fd, (const struct sockaddr *)address, sizeof *address) != 0 && errno == ECONNREFUSED;
    (void)close(fd);
    return stale;
}

static headrace_status bind_unix(hr_server *server, const char *path, headrace_error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd;

    if (strlen(path) == 0 || strlen(path) >= sizeof address.sun_path)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "host", "unix socket path must be 1 to %zu bytes long",
                             sizeof address.sun_path - 1);
    memcpy(address.sun_path, path, strlen(path) + 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return bind_failed(path, errno, err);
    server->listen_fds[server->n_listen_fds++] = fd;
    if (is_stale(&address))
        (void)unlink(path);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0)
        return bind_failed(path, errno, err);
    server->unix_path = strdup(path);
    (void)snprintf(server->url, sizeof server->url, "unix:%s", path);
    return HEADRACE_OK;
}

static int bind_one(const struct addrinfo *address)
{
    int on = 1, fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -1;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (address->ai_family == AF_INET6)
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (bind(fd, address->ai_addr, address->ai_addrlen) != 0) {
        int code = errno;

        (void)close(fd);
        errno = code;
        return -1;
    }
    return fd;
}

static uint16_t port_of(int fd)
{
    struct sockaddr_storage address = {0};
    socklen_t len = sizeof address;
    char service[16] = "0";

    if (getsockname(fd, (struct sockaddr *)&address, &len) != 0 ||
        getnameinfo((struct sockaddr *)&address, len, NULL, 0, service, sizeof service, NI_NUMERICSERV) != 0)
        return 0;
    return (uint16_t)strtoul(service, NULL, 10);
}

static void set_port(struct addrinfo *address, uint16_t port)
{
    if (address->ai_family == AF_INET) {
        struct sockaddr_in in;

        memcpy(&in, address->ai_addr, sizeof in);
        in.sin_port = htons(port);
        memcpy(address->ai_addr, &in, sizeof in);
    } else if (address->ai_family == AF_INET6) {
        struct sockaddr_in6 in6;

        memcpy(&in6, address->ai_addr, sizeof in6);
        in6.sin6_port = htons(port);
        memcpy(address->ai_addr, &in6, sizeof in6);
    }
}

static headrace_status bind_addresses(hr_server *server, struct addrinfo *addresses, headrace_error *err)
{
    const hr_server_options *options = &server->options;
    uint16_t port = options->port;
    char where[256];
    int code = 0;

    (void)snprintf(where, sizeof where, "%s port %u", options->host, options->port);
    for (struct addrinfo *address = addresses; address && server->n_listen_fds < HR_LOOP_LISTENERS_MAX;
         address = address->ai_next) {
        int fd;

        set_port(address, port);
        fd = bind_one(address);
        if (fd < 0) { /* a name may stand for an address family that this machine lacks; one address is enough */
            code = errno;
            if (code == EADDRINUSE)
                return bind_failed(where, code, err);
            continue;
        }
        server->listen_fds[server->n_listen_fds++] = fd;
        port = port_of(fd);
    }
    if (server->n_listen_fds == 0)
        return bind_failed(where, code ? code : EADDRNOTAVAIL, err);
    (void)snprintf(server->url, sizeof server->url, strchr(options->host, ':') ? "http://[%s]:%u" : "http://%s:%u",
                   options->host, port);
    return HEADRACE_OK;
}

headrace_status hr_listen_bind(hr_server *server, headrace_error *err)
{
    const char *host = server->options.host;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *addresses = NULL;
    headrace_status status;
    int code;

    if (strncmp(host, "unix:", 5) == 0)
        return bind_unix(server, host + 5, err);
    code = getaddrinfo(host, NULL, &hints, &addresses);
    if (code != 0)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "host", "cannot find the address of host %s: %s", host,
                             gai_strerror(code));
    status = bind_addresses(server, addresses, err);
    freeaddrinfo(addresses);
    return status;
}

headrace_status hr_listen_start(hr_server *server, headrace_error *err)
{
    for (size_t i = 0; i < server->n_listen_fds; i++) {
        if (listen(server->listen_fds[i], BACKLOG) != 0)
            return bind_failed(server->url, errno, err);
    }
    return HEADRACE_OK;
}

void hr_listen_close(hr_server *server)
{
    for (size_t i = 0; i < server->n_listen_fds; i++)
        (void)close(server->listen_fds[i]);
    server->n_listen_fds = 0;
    if (server->unix_path)
        (void)unlink(server->unix_path);
    free(server->unix_path);
    server->unix_path = NULL;
}
