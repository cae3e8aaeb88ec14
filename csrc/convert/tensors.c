/* See tensors.h. */
#include "convert/tensors.h"

#include "convert/source.h"
#include "format/quantize.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

enum { PROGRESS_MS = 100 };

/* Rows of one slab of one tensor. */
typedef struct block {
    uint32_t tensor, slab, row, n_rows;
} block;

/* What a thread has for itself. */
typedef struct buffers {
    float *values;                /* one row */
    unsigned char *rows, *result; /* a block, as it was and as it will be */
} buffers;

/* What the threads share; guarded by lock, but for work and source, which do not change. */
typedef struct state {
    const hr_convert_work *work;
    hr_source source;
    pthread_mutex_t lock;
    pthread_cond_t finished; /* a thread has ended */
    block next;
    uint32_t n_running;
    uint64_t n_written;
    bool must_stop;
    bool has_failed;
    block failed; /* where the error below arose: the first in the file's order */
    headrace_error error;
} state;

/* ---------------------------------------------------------------- handing out blocks */

static uint32_t rows_a_block(const hr_plan_tensor *tensor)
{
    uint32_t n = HR_CONVERT_BLOCK_VALUES / tensor->cols;

    return n == 0 ? 1 : n < tensor->rows ? n : tensor->rows;
}

static bool take_block(state *s, block *out)
{
    const hr_plan *plan = s->work->plan;
    bool has_block;

    (void)pthread_mutex_lock(&s->lock);
    has_block = !s->must_stop && s->next.tensor < plan->n_tensors;
    if (has_block) {
        const hr_plan_tensor *tensor = &plan->tensors[s->next.tensor];
        uint32_t left = tensor->rows - s->next.row, most = rows_a_block(tensor);

        *out = s->next;
        out->n_rows = left < most ? left : most;
        s->next.row += out->n_rows;
        if (s->next.row == tensor->rows) {
            s->next.row = 0;
            s->next.slab++;
        }
        if (s->next.slab == tensor->n_slabs)
            s->next = (block){.tensor = s->next.tensor + 1};
    }
    (void)pthread_mutex_unlock(&s->lock);
    return has_block;
}

static bool is_before(const block *a, const block *b)
{
    if (a->tensor != b->tensor)
        return a->tensor < b->tensor;
    return a->slab != b->slab ? a->slab < b->slab : a->row < b->row;
}

static void end_block(state *s, const block *at, size_t n_bytes, headrace_status status, const headrace_error *error)
{
    (void)pthread_mutex_lock(&s->lock);
    s->n_written += n_bytes;
    if (status != HEADRACE_OK && (!s->has_failed || is_before(at, &s->failed))) {
        s->has_failed = s->must_stop = true;
        s->failed = *at;
        s->error = *error;
        s->error.status = status;
    }
    (void)pthread_mutex_unlock(&s->lock);
}

/* ---------------------------------------------------------------- one block */

/* The tensor of the source in whose bytes `at` lies; NULL for values that live in memory. */
static const hr_tensor *source_of(const hr_model *model, const void *at)
{
    for (uint32_t i = 0; i < model->file->n_tensors; i++) {
        const hr_tensor *tensor = &model->file->tensors[i];

        if ((uintptr_t)at >= (uintptr_t)tensor->data && (uintptr_t)at < (uintptr_t)tensor->data + tensor->n_bytes)
            return tensor;
    }
    return NULL;
}

static headrace_status refuse_value(const hr_convert_work *work, const block *at, uint32_t row, size_t col, float value,
                                    headrace_error *err)
{
    const hr_plan_tensor *tensor = &work->plan->tensors[at->tensor];
    const hr_matrix *matrix = hr_plan_slab(tensor, at->slab);
    const hr_tensor *source = source_of(work->model, (const char *)matrix->data + row * matrix->row_bytes);
    const hr_dtype_info *info = &hr_dtypes[matrix->dtype];
    unsigned long long offset = 0;

    if (source)
        offset = source->file_offset + ((uintptr_t)matrix->data - (uintptr_t)source->data) + row * matrix->row_bytes +
                 col / info->block_values * info->block_bytes;
    if (!isfinite(value))
        return hr_fail(err, HEADRACE_E_MODEL, "%s: tensor '%s', row %u, column %zu (byte %llu): %s is no weight",
                       source ? work->model->file->paths[source->shard] : work->model->path,
                       source ? source->name : tensor->name, row, col, offset, isnan(value) ? "NaN" : "an infinity");
    return hr_fail(err, HEADRACE_E_MODEL,
                   "%s: tensor '%s', row %u, column %zu (byte %llu): %g is too large for %s; bf16 and f32 hold it",
                   source ? work->model->file->paths[source->shard] : work->model->path,
                   source ? source->name : tensor->name, row, col, offset, (double)value,
                   hr_dtypes[tensor->target].name);
}

static size_t first_not_finite(const float *values, size_t n)
{
    size_t i = 0;

    while (i < n && isfinite(values[i]))
        i++;
    return i;
}

/* The rows as they were to rows as they will be. */
static headrace_status convert_rows(const hr_convert_work *work, const block *at, const buffers *own,
                                    headrace_error *err)
{
    const unsigned char *from = own->rows;
    unsigned char *to = own->result;
    float *values = own->values;
    const hr_plan_tensor *tensor = &work->plan->tensors[at->tensor];
    const hr_matrix *matrix = hr_plan_slab(tensor, at->slab);
    const float *importance = work->importance ? work->importance[at->tensor] : NULL;
    size_t cols = tensor->cols, row_bytes = hr_dtype_row_bytes(tensor->target, cols);

    if (importance)
        importance += at->slab * cols;
    for (uint32_t i = 0; i < at->n_rows; i++) {
        size_t good;

        hr_dequantize(matrix->dtype, from, values, cols);
        if (matrix->dtype == tensor->target) {
            memcpy(to, from, row_bytes);
            good = first_not_finite(values, cols);
        } else {
            good = hr_quantize_row(tensor->target, values, importance, cols, to);
        }
        if (good < cols)
            return refuse_value(work, at, at->row + i, good, values[good], err);
        from += matrix->row_bytes;
        to += row_bytes;
    }
    return HEADRACE_OK;
}

static headrace_status convert_block(const state *s, const block *at, const buffers *own, size_t *n_bytes,
                                     headrace_error *err)
{
    const hr_convert_work *work = s->work;
    const hr_plan_tensor *tensor = &work->plan->tensors[at->tensor];
    size_t row_bytes = hr_dtype_row_bytes(tensor->target, tensor->cols);
    uint64_t row = (uint64_t)at->slab * tensor->rows + at->row;
    uint64_t to = work->data_at + tensor->offset + row * row_bytes;
    const hr_matrix *matrix;

    *n_bytes = at->n_rows * row_bytes;
    if (tensor->part == HR_PART_VECTOR) /* checked and made fp32 when the model was opened */
        return hr_output_write(work->output, tensor->values + (size_t)at->row * tensor->cols, *n_bytes, to, err);
    matrix = hr_plan_slab(tensor, at->slab);
    HR_PASS(hr_source_read(&s->source, (const char *)matrix->data + at->row * matrix->row_bytes,
                           at->n_rows * matrix->row_bytes, own->rows, err));
    HR_PASS(convert_rows(work, at, own, err));
    return hr_output_write(work->output, own->result, *n_bytes, to, err);
}

/* ---------------------------------------------------------------- threads */

/* Room for the longest row and the largest block of any tensor. */
static bool make_buffers(const hr_plan *plan, buffers *out)
{
    size_t cols = 1, n = 1;

    for (uint32_t i = 0; i < plan->n_tensors; i++) {
        const hr_plan_tensor *tensor = &plan->tensors[i];
        size_t values = (size_t)rows_a_block(tensor) * tensor->cols;

        cols = tensor->cols > cols ? tensor->cols : cols;
        n = values > n ? values : n;
    }
    out->values = malloc(cols * sizeof *out->values);
    out->rows = malloc(hr_dtype_row_bytes(HR_F32, n)); /* no type has more bytes */
    out->result = malloc(hr_dtype_row_bytes(HR_F32, n));
    return out->values && out->rows && out->result;
}

static void *run_thread(void *user)
{
    state *s = user;
    headrace_error error = {0};
    buffers own = {0};
    block at = {0};
    size_t n_bytes;

    if (!make_buffers(s->work->plan, &own))
        end_block(s, &at, 0, hr_fail(&error, HEADRACE_E_MEMORY, "no memory for a block of rows"), &error);
    else
        while (take_block(s, &at)) {
            headrace_status status = convert_block(s, &at, &own, &n_bytes, &error);

            end_block(s, &at, n_bytes, status, &error);
        }
    free(own.values);
    free(own.rows);
    free(own.result);
    (void)pthread_mutex_lock(&s->lock);
    s->n_running--;
    (void)pthread_cond_signal(&s->finished);
    (void)pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* Waits for the threads and tells of progress, outside the lock. */
static bool watch(state *s)
{
    const hr_convert_work *work = s->work;
    bool goes_on = true, is_running = true;

    while (is_running) {
        struct timespec until;
        uint64_t done;

        (void)clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += PROGRESS_MS * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        (void)pthread_mutex_lock(&s->lock);
        while (s->n_running > 0 && pthread_cond_timedwait(&s->finished, &s->lock, &until) != ETIMEDOUT)
            continue;
        is_running = s->n_running > 0;
        done = s->n_written;
        (void)pthread_mutex_unlock(&s->lock);
        if (goes_on && work->progress && !work->progress(done, work->plan->n_bytes, work->progress_user)) {
            goes_on = false;
            (void)pthread_mutex_lock(&s->lock);
            s->must_stop = true;
            (void)pthread_mutex_unlock(&s->lock);
        }
    }
    return goes_on;
}

static headrace_status run(state *s, headrace_error *err)
{
    uint32_t n = s->work->n_threads, n_started = 0;
    pthread_t *threads = calloc(n, sizeof *threads);
    bool was_cancelled = false;

    if (!threads)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for %u threads", n);
    for (; n_started < n; n_started++) {
        (void)pthread_mutex_lock(&s->lock);
        s->n_running++;
        (void)pthread_mutex_unlock(&s->lock);
        if (pthread_create(&threads[n_started], NULL, run_thread, s) != 0) {
            (void)pthread_mutex_lock(&s->lock);
            s->n_running--;
            (void)pthread_mutex_unlock(&s->lock);
            break;
        }
    }
    if (n_started > 0)
        was_cancelled = !watch(s);
    for (uint32_t i = 0; i < n_started; i++)
        (void)pthread_join(threads[i], NULL);
    free(threads);
    if (n_started == 0)
        return hr_fail(err, HEADRACE_E_MEMORY, "the system allows no thread");
    if (s->has_failed) {
        if (err)
            *err = s->error;
        return s->error.status;
    }
    return was_cancelled ? hr_fail(err, HEADRACE_E_CANCELLED, "%s: the conversion was stopped", s->work->output->path)
                         : HEADRACE_OK;
}

headrace_status hr_convert_tensors(const hr_convert_work *work, headrace_error *err)
{
    state s = {.work = work};
    pthread_condattr_t monotonic;
    headrace_status status;

    HR_PASS(hr_source_open(work->model->file, &s.source, err));
    (void)pthread_mutex_init(&s.lock, NULL);
    (void)pthread_condattr_init(&monotonic);
    (void)pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&s.finished, &monotonic);
    status = run(&s, err);
    (void)pthread_cond_destroy(&s.finished);
    (void)pthread_condattr_destroy(&monotonic);
    (void)pthread_mutex_destroy(&s.lock);
    hr_source_close(&s.source);
    return status;
}
