/* A growing byte buffer for text that is written from front to back: JSON, SSE frames, rendered chats.
 *
 * Append functions do not return errors: the first failed allocation sets `failed`, later appends do nothing, and the
 * caller looks once at the end. This keeps writers readable. Single owner.
 */
#ifndef HR_BASE_BUFFER_H
#define HR_BASE_BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct hr_buffer {
    char *at; /* heap; terminated after every append */
    size_t len, capacity;
    bool failed; /* an allocation failed; the content is incomplete */
} hr_buffer;

void hr_buffer_deinit(hr_buffer *buffer);
void hr_buffer_clear(hr_buffer *buffer);                 /* keeps the memory */
bool hr_buffer_reserve(hr_buffer *buffer, size_t extra); /* room for extra bytes and a terminator */
void hr_buffer_add(hr_buffer *buffer, const void *bytes, size_t len);
void hr_buffer_add_text(hr_buffer *buffer, const char *text);
void hr_buffer_add_char(hr_buffer *buffer, char c);
void hr_buffer_printf(hr_buffer *buffer, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Hands the terminated memory to the caller (free()); the buffer is empty again. NULL if an append failed. */
char *hr_buffer_take(hr_buffer *buffer, size_t *len);

/* JSON pieces. The reader of JSON is Jansson; writing happens per token and is done by hand. */
void hr_json_string(hr_buffer *buffer, const char *text,
                    size_t len); /* quoted and escaped; invalid UTF-8 becomes U+FFFD */
void hr_json_int(hr_buffer *buffer, int64_t value);
void hr_json_uint(hr_buffer *buffer, uint64_t value);
void hr_json_double(hr_buffer *buffer, double value); /* shortest text that reads back equal; not finite: null */
void hr_json_float(hr_buffer *buffer, float value);

#endif
