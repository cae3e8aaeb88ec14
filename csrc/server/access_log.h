/* One line a request on stderr. Never prompts, answers, keys or header values other than the request id. */
#ifndef HR_SERVER_ACCESS_LOG_H
#define HR_SERVER_ACCESS_LOG_H

#include "server/http.h"
#include "server/server.h"

typedef struct hr_access_entry {
    const char *request_id, *route, *method, *model, *peer;
    int status;
    uint64_t total_us;
    const hr_http_log *log;
} hr_access_entry;

void hr_access_log(hr_log_format format, const hr_access_entry *entry);

#endif
