/* headrace version and headrace doctor: what this build is, and what this machine grants it. */
#include "cli/program.h"

#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { DEFAULT_PORT = 8000 }; /* as in the option table */

int hr_cmd_version(int argc, char **argv)
{
    hr_options *options =
        hr_options_parse(argc, argv, HR_FOR_VERSION, "", "Version and, with --verbose, what is built in.", 0, 0);

    (void)printf("headrace %s\n", headrace_version());
    if (hr_option_bool(options, "verbose"))
        (void)printf("%s\n", headrace_build_info());
    hr_options_destroy(options);
    return HR_EXIT_OK;
}

/* One number of /proc/meminfo in bytes, 0 when absent. */
static uint64_t meminfo(const char *name)
{
    FILE *file = fopen("/proc/meminfo", "r");
    char line[256];
    size_t len = strlen(name);
    unsigned long long kib = 0;

    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, name, len) == 0 && line[len] == ':') {
            kib = strtoull(line + len + 1, NULL, 10);
            break;
        }
    }
    if (file)
        (void)fclose(file);
    return (uint64_t)kib * 1024;
}

/* Whether a server could listen on the port that serve takes by default. */
static bool is_port_free(uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    bool is_free;

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd >= 0)
        (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    is_free = fd >= 0 && bind(fd, (const struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 1) == 0;
    if (fd >= 0)
        (void)close(fd);
    return is_free;
}

int hr_cmd_doctor(int argc, char **argv)
{
    hr_options *options = hr_options_parse(argc, argv, HR_FOR_DOCTOR, "", "What this machine grants headrace.", 0, 0);
    struct rlimit files = {0};
    const char *tiny = headrace_embedded_model_path();
    uint64_t total = meminfo("MemTotal"), available = meminfo("MemAvailable");
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    bool has_driver = access("/proc/driver/nvidia/version", R_OK) == 0;
    bool is_free = is_port_free(DEFAULT_PORT);
    char a[32], b[32];
    hr_buffer json = {0};

    (void)getrlimit(RLIMIT_NOFILE, &files);
    if (hr_option_bool(options, "json")) {
        hr_buffer_printf(&json, "{\"version\":\"%s\",\"build\":", headrace_version());
        hr_json_string(&json, headrace_build_info(), strlen(headrace_build_info()));
        hr_buffer_printf(
            &json, ",\"cpus\":%ld,\"memory_bytes\":%llu,\"memory_available_bytes\":%llu,\"open_files\":%llu,", cores,
            (unsigned long long)total, (unsigned long long)available, (unsigned long long)files.rlim_cur);
        hr_buffer_printf(&json, "\"port_%d_free\":%s,\"nvidia_driver\":%s,\"embedded_model\":%s}", DEFAULT_PORT,
                         is_free ? "true" : "false", has_driver ? "true" : "false", tiny ? "true" : "false");
        (void)printf("%s\n", json.at ? json.at : "");
        hr_buffer_deinit(&json);
    } else {
        (void)printf("version         %s\nbuild           %s\ncpus            %ld\n", headrace_version(),
                     headrace_build_info(), cores);
        (void)printf("memory          %s, %s available\n", hr_format_bytes(total, a), hr_format_bytes(available, b));
        (void)printf("open files      %llu%s\n", (unsigned long long)files.rlim_cur,
                     files.rlim_cur < 8192 ? " (many streams need more: ulimit -n 65536)" : "");
        (void)printf("port %d       %s\n", DEFAULT_PORT, is_free ? "free" : "in use (serve --port N takes another)");
        (void)printf("NVIDIA driver   %s\n",
                     has_driver ? "present (this version computes on the CPU only)" : "none: the CPU computes");
        (void)printf("embedded model  %s\n", tiny ? tiny : "not found");
    }
    hr_options_destroy(options);
    return HR_EXIT_OK;
}
