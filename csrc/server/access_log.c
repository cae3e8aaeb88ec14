/* See access_log.h. A line is one write(2): lines of different threads do not mix, and a full or closed pipe loses
 * lines, not requests. */
#include "server/access_log.h"

#include "base/buffer.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

static void add_timestamp(hr_buffer *line)
{
    struct timespec now;
    struct tm parts;
    char text[32] = "";

    (void)clock_gettime(CLOCK_REALTIME, &now);
    if (gmtime_r(&now.tv_sec, &parts))
        (void)strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
    hr_buffer_printf(line, "%s.%03ldZ", text, now.tv_nsec / 1000000);
}

static void add_json(hr_buffer *line, const char *name, const char *text)
{
    hr_buffer_printf(line, ",\"%s\":", name);
    if (text)
        hr_json_string(line, text, strlen(text));
    else
        hr_buffer_add_text(line, "null");
}

static double ms(uint64_t us)
{
    return (double)us / 1000.0;
}

static void write_json(hr_buffer *line, const hr_access_entry *entry)
{
    const hr_http_log *log = entry->log;

    hr_buffer_add_text(line, "{\"ts\":\"");
    add_timestamp(line);
    hr_buffer_add_char(line, '"');
    add_json(line, "request_id", entry->request_id);
    add_json(line, "method", entry->method);
    add_json(line, "route", entry->route);
    add_json(line, "model", entry->model);
    hr_buffer_printf(line, ",\"status\":%d", entry->status);
    add_json(line, "code", log->code);
    hr_buffer_printf(line, ",\"prompt_tokens\":%u,\"cached_tokens\":%u,\"completion_tokens\":%u", log->n_prompt_tokens,
                     log->n_cached_tokens, log->n_completion_tokens);
    hr_buffer_printf(line, ",\"queue_ms\":%.3f,\"ttft_ms\":%.3f,\"total_ms\":%.3f", ms(log->queue_us), ms(log->ttft_us),
                     ms(entry->total_us));
    add_json(line, "finish_reason", log->finish);
    hr_buffer_printf(line, ",\"cancelled\":%s", log->cancelled ? "true" : "false");
    add_json(line, "client", entry->peer);
    hr_buffer_add_text(line, "}\n");
}

static void write_text(hr_buffer *line, const hr_access_entry *entry)
{
    const hr_http_log *log = entry->log;

    add_timestamp(line);
    hr_buffer_printf(line, " %s %s %s %d", entry->request_id, entry->method, entry->route, entry->status);
    if (log->code)
        hr_buffer_printf(line, " %s", log->code);
    if (log->n_prompt_tokens)
        hr_buffer_printf(line, " prompt=%u cached=%u completion=%u queue=%.1fms ttft=%.1fms", log->n_prompt_tokens,
                         log->n_cached_tokens, log->n_completion_tokens, ms(log->queue_us), ms(log->ttft_us));
    if (log->finish)
        hr_buffer_printf(line, " finish=%s", log->finish);
    if (log->cancelled)
        hr_buffer_add_text(line, " cancelled");
    hr_buffer_printf(line, " total=%.1fms\n", ms(entry->total_us));
}

void hr_access_log(hr_log_format format, const hr_access_entry *entry)
{
    hr_buffer line = {0};

    if (format == HR_LOG_JSON)
        write_json(&line, entry);
    else
        write_text(&line, entry);
    if (!line.failed && write(STDERR_FILENO, line.at, line.len) < 0) {
        /* nobody reads: the request matters more than its log line */
    }
    hr_buffer_deinit(&line);
}
