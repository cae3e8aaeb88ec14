/* The table of routes: who answers what, and who needs a key. Authentication, CORS preflight, method and content type
 * checks happen here, before any handler, so that no handler can forget them. */
#ifndef HR_SERVER_ROUTES_H
#define HR_SERVER_ROUTES_H

#include "server/http.h"

/* Answers the complete request of a connection, now or later. */
void hr_route(hr_http_conn *conn);
/* For metrics and logs: the pattern of a route, "unmatched" for none. */
const char *hr_route_name(uint32_t route_idx);
bool hr_route_is_logged(uint32_t route_idx); /* health checks and scrapes are not */

#endif
