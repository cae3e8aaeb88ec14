/* A model written as a GGUF file of a named mix of types: a Hugging Face folder, or another GGUF file.
 *
 * The order of the steps is chosen so that nothing is begun that cannot end: the model is opened and checked, the types
 * chosen, the header built (its length and the sizes of all tensors are then known), the file reserved on disk, and
 * only then a weight is read.
 */
#ifndef HR_CONVERT_CONVERT_H
#define HR_CONVERT_CONVERT_H

#include "convert/plan.h"

typedef struct hr_convert_options {
    const char *out;    /* NULL: hr_convert_name */
    const char *folder; /* with out NULL: where the file goes; NULL: into the model's folder, beside its file */
    const hr_mix *mix;
    const char *imatrix;                                         /* path, or NULL */
    uint32_t n_threads;                                          /* 0: one a processor that this process may use */
    bool may_replace;                                            /* an existing file may be replaced */
    bool may_requantise;                                         /* from a type that already lost precision */
    bool (*progress)(uint64_t done, uint64_t total, void *user); /* see hr_convert_work */
    void *progress_user;
} hr_convert_options;

typedef struct hr_convert_result {
    char *path;       /* heap, free() */
    uint64_t n_bytes; /* of the file */
    uint64_t n_parameters;
    uint32_t n_tensors;
} hr_convert_result;

/* Errors: E_ARGUMENT (out is a file that is read), E_IO (it exists, does not fit, cannot be written), E_MODEL,
 * E_MEMORY, E_UNSUPPORTED (GGUF cannot say it; a quantised source without may_requantise), E_CANCELLED. On failure no
 * file is left, and what was under the name before still is. */
headrace_status hr_convert(const char *model_path, const hr_convert_options *options, hr_convert_result *out,
                           headrace_error *err);

/* NAME-Q4_K_M.gguf in a folder, heap: NAME is the model's folder or file without .gguf and without the name of the type
 * it had (-F16). NULL without memory. */
char *hr_convert_name(const char *model_path, const char *folder, const hr_mix *mix);

#endif
