/* Importance matrices: how strongly each input column of a matrix is driven, from running a text through the model.
 *
 * The squared error of a matrix's output is, on average, the sum over columns of E[x_col^2] x (error of the weight)^2,
 * so E[x_col^2] is what a quantiser weighs its errors with. A file holds for a tensor named NAME
 *   NAME.in_sum2  F32 [experts][columns]   sum of x^2 over the rows of activations that the matrix (or the expert) saw
 *   NAME.counts   F32 [experts][1]         the number of those rows
 * in a GGUF file of general.type "imatrix" with the keys imatrix.datasets, imatrix.chunk_count and imatrix.chunk_size:
 * the form that llama-imatrix writes. Its older form (.dat, one record a tensor, no counts per expert) is read as well.
 * NAME is the GGUF name of the weight (blk.0.shortconv.in_proj.weight); dense matrices have one expert.
 */
#ifndef HR_CONVERT_IMATRIX_H
#define HR_CONVERT_IMATRIX_H

#include "base/arena.h"
#include "base/status.h"
#include "format/tensor_file.h"

typedef struct hr_imatrix_entry {
    const char *name; /* terminated; arena */
    uint32_t n_experts;
    uint32_t n_columns;
    float *mean_squares; /* [n_experts][n_columns], finite, >= 0, an expert's never all zero; arena */
    uint32_t n_unseen;   /* experts that no row reached: they have the mean of the others, or ones if there is none */
    uint32_t n_rare;     /* experts that fewer than HR_IMATRIX_PRIOR_ROWS rows reached: they lean on the mean */
} hr_imatrix_entry;

typedef struct hr_imatrix {
    const char *path;          /* arena */
    hr_imatrix_entry *entries; /* sorted by name; arena */
    uint32_t n_entries;
    uint32_t chunk_count;  /* 0 where the file does not say */
    uint32_t chunk_size;   /* tokens; 0 in the older form */
    const char **datasets; /* [n_datasets]; arena */
    uint32_t n_datasets;
    hr_arena arena;
} hr_imatrix;

/* Reads either form. An expert that c rows reached gets (c x own mean + K x mean over all rows of the tensor, scaled to
 * the own mean's size) / (c + K), K = HR_IMATRIX_PRIOR_ROWS: c rows of noise say little about 2048 columns, and a
 * column that happened to be silent in them must not be free to round badly. An expert that no row reached thus has the
 * mean of the others. One log line says how many experts that concerns. Dense matrices are taken as they are. The older
 * form keeps no counts per expert (it has ones for those that no row reached); its figures are taken as they are, too.
 *
 * Errors: E_IO (cannot be read), E_MODEL (not such a file, cut off, a sum that is negative or not finite, sums without
 * counts, the same tensor twice), E_MEMORY, each with path and tensor or byte offset. */
enum { HR_IMATRIX_PRIOR_ROWS = 32 };
headrace_status hr_imatrix_open(const char *path, hr_imatrix *out, headrace_error *err);
/* Parses a file that is already in memory, for the fuzzer. The bytes may be freed afterwards. */
headrace_status hr_imatrix_parse(const unsigned char *bytes, size_t len, const char *path, hr_imatrix *out,
                                 headrace_error *err);
void hr_imatrix_close(hr_imatrix *imatrix); /* accepts a zeroed one */

/* The mean squares [n_experts][n_columns] of the weight `name`, borrowed until close; *out is NULL when the file has
 * none for it. E_MODEL when the file's experts or columns are others than the weight's; an older file that holds the
 * experts side by side is recognised by its number of values. */
headrace_status hr_imatrix_find(const hr_imatrix *imatrix, const char *name, uint64_t n_experts, uint64_t n_columns,
                                const float **out, headrace_error *err);

/* What a run collected for one matrix; borrowed while it is written. */
typedef struct hr_imatrix_sums {
    const char *name;
    uint32_t n_experts; /* 1 for a dense matrix */
    uint32_t n_columns;
    const double *sums;   /* [n_experts][n_columns], sums of x^2, rounded to float32 on writing */
    const uint64_t *rows; /* [n_experts], rows of activations summed */
} hr_imatrix_sums;

typedef struct hr_imatrix_source {
    const char *const *datasets; /* [n_datasets] names of the texts */
    uint32_t n_datasets;
    uint32_t chunk_count;
    uint32_t chunk_size;         /* tokens */
    const hr_tensor_file *model; /* whose files are not written over; NULL: none */
} hr_imatrix_source;

/* Writes the GGUF form, tensors sorted by name; replaces a file of that name. Complete and on disk, or not there at all
 * (convert/output.h). Errors: E_ARGUMENT (no tensors, a name twice or too long for llama.cpp, a sum that is negative or
 * not finite as float32, path is a file of the model), E_IO, E_MEMORY. */
headrace_status hr_imatrix_write(const char *path, const hr_imatrix_sums *sums, size_t n_sums,
                                 const hr_imatrix_source *source, headrace_error *err);

#endif
