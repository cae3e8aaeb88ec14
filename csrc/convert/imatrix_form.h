/* What the readers of the two forms share with imatrix.c. */
#ifndef HR_CONVERT_IMATRIX_FORM_H
#define HR_CONVERT_IMATRIX_FORM_H

#include "convert/imatrix.h"

/* Room for n entries. */
headrace_status hr_imatrix_reserve(hr_imatrix *imatrix, uint64_t n, headrace_error *err);
/* A copy of the name and room for the values of the next entry, which counts from now on. */
headrace_status hr_imatrix_add(hr_imatrix *imatrix, const char *name, size_t name_len, uint32_t n_experts,
                               uint32_t n_columns, hr_imatrix_entry **out, headrace_error *err);
/* A copy of a text's name. */
headrace_status hr_imatrix_add_dataset(hr_imatrix *imatrix, const char *name, size_t len, headrace_error *err);
/* Turns the sums of an entry into mean squares (imatrix.h says how); counts [n_experts], whole numbers. */
headrace_status hr_imatrix_settle(const hr_imatrix *imatrix, hr_imatrix_entry *entry, const float *counts,
                                  headrace_error *err);
/* E_MODEL with the first of the entry's values that is negative or not finite; at: byte offset of the first. */
headrace_status hr_imatrix_check(const hr_imatrix *imatrix, const hr_imatrix_entry *entry, uint64_t at,
                                 headrace_error *err);

headrace_status hr_imatrix_read_dat(const unsigned char *bytes, size_t len, hr_imatrix *out, headrace_error *err);

#endif
