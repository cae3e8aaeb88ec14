/* What the program serves beside its answers: files of csrc/cli/web, turned into arrays while building (embed.cmake),
 * so that the program stays one file. The server itself knows no files; it gets these texts with its options.
 * Terminated UTF-8.
 */
#ifndef HR_CLI_WEB_H
#define HR_CLI_WEB_H

extern const char hr_web_page[];    /* GET /: index.html */
extern const char hr_web_openapi[]; /* GET /openapi.json */

#endif
