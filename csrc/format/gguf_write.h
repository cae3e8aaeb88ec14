/* Writing GGUF version 3: the header is put together in memory, the data is the caller's to place.
 *
 * A header is small (a vocabulary of 65536 tokens makes some megabytes) and its length decides where the data begins,
 * so it is built first and written last: a file whose first bytes are still zero is no model, whatever happened to its
 * writer. Tensors lie in the order in which they were added, each at a multiple of 32.
 *
 * Put functions do not return errors: the first failed allocation is reported by hr_gguf_header. Keys are not compared;
 * the caller puts each once. Single owner.
 */
#ifndef HR_FORMAT_GGUF_WRITE_H
#define HR_FORMAT_GGUF_WRITE_H

#include "base/buffer.h"
#include "format/gguf.h"

enum { HR_GGUF_ALIGNMENT = 32 };

/* Zeroed to begin with. */
typedef struct hr_gguf_writer {
    hr_buffer entries, tensors; /* as they will lie in the file */
    uint64_t n_entries, n_tensors;
    uint64_t n_data_bytes; /* of the tensors so far, each padded to the alignment */
} hr_gguf_writer;

void hr_gguf_writer_deinit(hr_gguf_writer *writer);

void hr_gguf_put_u32(hr_gguf_writer *writer, const char *key, uint32_t value);
void hr_gguf_put_i32(hr_gguf_writer *writer, const char *key, int32_t value);
void hr_gguf_put_f32(hr_gguf_writer *writer, const char *key, float value);
void hr_gguf_put_bool(hr_gguf_writer *writer, const char *key, bool value);
void hr_gguf_put_string(hr_gguf_writer *writer, const char *key, const char *text, size_t len);
void hr_gguf_put_i32_array(hr_gguf_writer *writer, const char *key, const int32_t *values, uint64_t n);
/* An array of n strings: exactly n calls of hr_gguf_put_element follow. */
void hr_gguf_put_strings(hr_gguf_writer *writer, const char *key, uint64_t n);
void hr_gguf_put_element(hr_gguf_writer *writer, const char *text, size_t len);
/* An entry of another file, as it is. */
void hr_gguf_put_entry(hr_gguf_writer *writer, const hr_gguf_entry *entry);

/* shape is row-major, slowest dimension first, as everywhere here; the row is a whole number of blocks and the sizes
 * were checked. Returns where the tensor's bytes begin, counted from the start of the data. */
uint64_t hr_gguf_add_tensor(hr_gguf_writer *writer, const char *name, hr_dtype dtype, uint32_t rank,
                            const uint64_t *shape);

/* The whole header, padded: the data begins at header->len, and the file has header->len + writer->n_data_bytes bytes.
 * header is zeroed to begin with and freed with hr_buffer_deinit. Errors: E_MEMORY. */
headrace_status hr_gguf_header(const hr_gguf_writer *writer, hr_buffer *header, headrace_error *err);

#endif
