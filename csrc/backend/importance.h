/* Importance of input columns: sums of squares of what goes into each weight matrix, collected from the taps of a run.
 *
 * A quantiser weighs the error of a column by the mean square of that column's input (convert/imatrix.h). Matrices that
 * read the same rows share one set of sums: q, k and v, gate and up. An expert's sums are over the rows that chose it,
 * so a rarely chosen expert is known by its few rows and not by the average of all.
 *
 * Sums are doubles: after a million rows of fp32 a small column would stop growing. One collector, one thread.
 */
#ifndef HR_BACKEND_IMPORTANCE_H
#define HR_BACKEND_IMPORTANCE_H

#include "backend/taps.h"
#include "model/model.h"

/* The four inputs of a layer, by the matrices that read them. */
typedef enum hr_input {
    HR_INPUT_OPERATOR,     /* H columns: in_proj, or q, k and v */
    HR_INPUT_OPERATOR_OUT, /* H or Nq D columns: out_proj */
    HR_INPUT_FFN,          /* H columns: gate and up; by expert in a mixture */
    HR_INPUT_DOWN,         /* F or M columns: down; by expert in a mixture */
    HR_INPUT_COUNT
} hr_input;

typedef struct hr_input_sums {
    uint32_t n_experts, n_columns; /* n_experts is 1 for a dense matrix */
    double *sums;                  /* [n_experts, n_columns], of x^2 */
    uint64_t *rows;                /* [n_experts], rows summed */
} hr_input_sums;

typedef struct hr_importance hr_importance;

/* The model must outlive the collector. Errors: E_MEMORY. */
headrace_status hr_importance_create(const hr_model *model, hr_importance **out, headrace_error *err);
void hr_importance_destroy(hr_importance *importance); /* NULL is accepted */

/* A hr_tap_fn; user is the collector. */
void hr_importance_tap(void *user, hr_tap tap, uint32_t layer, const float *data, uint32_t rows, uint32_t cols);

/* Whether each input was seen n_rows times (in a mixture n_rows x K in all). E_UNSUPPORTED names the first one that the
 * device does not show; E_MEMORY: rows were lost for want of memory. */
headrace_status hr_importance_check(const hr_importance *importance, uint64_t n_rows, headrace_error *err);

const hr_input_sums *hr_importance_layer(const hr_importance *importance, uint32_t layer, hr_input input);
/* Of the output head: H columns. */
const hr_input_sums *hr_importance_head(const hr_importance *importance);

#endif
