/* What the server hands out beside its answers: files of csrc/server/web, turned into arrays while building
 * (embed.cmake), so that the program stays one file. Terminated UTF-8.
 */
#ifndef HR_SERVER_WEB_H
#define HR_SERVER_WEB_H

extern const char hr_web_page[];    /* GET /: index.html */
extern const char hr_web_openapi[]; /* GET /openapi.json */

#endif
