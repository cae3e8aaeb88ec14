/* Where do two ways of computing the same thing part? Both run over the same ids, and every named value (taps.h) of the
 * one is held against the other's: plain against vector kernels, a device against the CPU, or one chunking against
 * another. */
#ifndef HR_BACKEND_COMPARE_H
#define HR_BACKEND_COMPARE_H

#include "backend/backend.h"
#include "base/buffer.h"

/* One way of computing. */
typedef struct hr_compare_side {
    const hr_backend_ops *ops;
    hr_backend_options options; /* exact, n_threads, kv_dtype, device_index and page_tokens; the rest is set here */
    uint32_t chunk;             /* rows a step; 0: 512 */
} hr_compare_side;

/* Runs ids [n] through an instance of each side.
 *
 * A value exceeds the tolerance when |left - right| > tolerance x max(1, root mean square of left's values of that
 * tap); expert ids exceed it when they differ. Appends one JSON object to json:
 *
 *   {"n_ids": 5, "tolerance": 0.001,
 *    "left": {"compute": "plain", "chunk": 512, "kv_cache_dtype": "f32"}, "right": {...},
 *    "first_difference": null or {"tap": "conv_y", "layer": 3, "row": 0, "col": 17, "left": 1.5, "right": 1.6,
 * "allowed": 0.001}, "taps": [{"tap": "embed", "layer": 0, "rows": 5, "cols": 1024, "max_abs": 0, "at_row": 0,
 * "at_col": 0, "rms": 0, "left_rms": 0.02, "exceeds": false}, ...]}
 *
 * Taps stand in the order in which left computed them, rows are positions; first_difference is the first row and column
 * of the first tap that exceeds. A tap that right does not emit has "rows": 0. Errors: E_ARGUMENT (no ids, an id
 * outside the vocabulary), E_CONTEXT, E_MEMORY (left's values are held: some ten times n x H x layers fp32), E_ENGINE.
 * Any thread. */
headrace_status hr_compare(const hr_model *model, const hr_compare_side *left, const hr_compare_side *right,
                           const int32_t *ids, uint32_t n, double tolerance, hr_buffer *json, headrace_error *err);

#endif
