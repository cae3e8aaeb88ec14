/* See cpu_weights.h.
 *
 * All packed matrices lie in one block of anonymous memory on huge pages: a step reads gigabytes in rising order, and
 * with small pages a good part of the time goes into looking up their addresses. The block is filled a few MiB at a
 * time, and after each piece the file's pages that it came from are given back, so the process never holds the weights
 * twice. A file's mapping is private and read-only, so a page given back is read from the file again when it is wanted.
 *
 * On a machine with several memory nodes the block is spread over them page by page. Which thread multiplies a tile is
 * decided while the step runs (a thread that lost its core takes fewer), so no tile has a node of its own; spread,
 * every thread sees the bandwidth of all nodes. Who chose a policy for the process (numactl) keeps it.
 *
 * Scales are looked at on the way, also of quantised matrices that stay where they are: one that is NaN or infinite
 * would make every answer NaN, and is named before the first one.
 *
 * The tables are walked by one function with a visitor, first to count and then to pack, as scratch is laid out.
 */
#include "backend/cpu/cpu_weights.h"

#include "backend/cpu/cpu_pack.h"

#include <errno.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    HUGE_PAGE = 2 << 20,
    PIECE_BYTES = 8 << 20, /* of a file, packed before its pages are given back */
    NODES_MAX = 1024,
};

/* ---------------------------------------------------------------- walking the tables */

/* may_pack: products read the matrix; others read it as it lies in the file. */
typedef headrace_status (*visit_fn)(void *user, hr_matrix *matrix, bool may_pack, headrace_error *err);

static headrace_status visit_ffn(hr_ffn_weights *ffn, visit_fn visit, void *user, headrace_error *err)
{
    HR_PASS(visit(user, &ffn->gate, true, err));
    HR_PASS(visit(user, &ffn->up, true, err));
    return visit(user, &ffn->down, true, err);
}

static headrace_status visit_layer(hr_layer *layer, visit_fn visit, void *user, headrace_error *err)
{
    switch (layer->operator) {
    case HR_OPERATOR_CONV:
        HR_PASS(visit(user, &layer->conv.in_proj, true, err));
        HR_PASS(visit(user, &layer->conv.out_proj, true, err));
        break;
    case HR_OPERATOR_ATTENTION:
        HR_PASS(visit(user, &layer->attention.q, true, err));
        HR_PASS(visit(user, &layer->attention.k, true, err));
        HR_PASS(visit(user, &layer->attention.v, true, err));
        HR_PASS(visit(user, &layer->attention.out, true, err));
        break;
    }
    return layer->is_moe ? visit(user, &layer->router, false, err) : visit_ffn(&layer->dense, visit, user, err);
}

/* Every matrix of the model. Routers run in fp32 from the file (cpu_moe.c), and an embedding that is not tied is read
 * there. Copies of the tables are handed to visit: what it changes is gone unless `into` keeps it. */
static headrace_status visit_all(const hr_model *model, hr_cpu_weights *into, visit_fn visit, void *user,
                                 headrace_error *err)
{
    uint32_t n_experts = model->arch.n_experts, n_before = 0;
    hr_matrix head = model->head, embedding = model->embedding;

    if (!model->is_tied) /* else it is the head's bytes */
        HR_PASS(visit(user, &embedding, false, err));
    for (uint32_t i = 0; i < model->arch.n_layers; i++) {
        hr_layer layer = model->layers[i];

        HR_PASS(visit_layer(&layer, visit, user, err));
        for (uint32_t e = 0; layer.is_moe && e < n_experts; e++) {
            hr_ffn_weights expert = layer.experts[e];

            HR_PASS(visit_ffn(&expert, visit, user, err));
            if (into)
                into->own_experts[n_before + e] = expert;
        }
        if (into) {
            if (layer.is_moe)
                layer.experts = into->own_experts + n_before;
            into->own_layers[i] = layer;
        }
        n_before += layer.is_moe ? n_experts : 0;
    }
    HR_PASS(visit(user, &head, true, err));
    if (into)
        into->head = head;
    return HEADRACE_OK;
}

static bool is_quantised(const hr_matrix *matrix)
{
    return hr_dtypes[matrix->dtype].block_values > 1;
}

typedef struct totals {
    bool exact;
    size_t packed, file; /* bytes in memory; bytes of all quantised matrices in the file */
} totals;

static headrace_status count_matrix(void *user, hr_matrix *matrix, bool may_pack, headrace_error *err)
{
    totals *sum = user;

    (void)err;
    if (may_pack && !sum->exact)
        sum->packed += hr_pack_bytes(matrix->dtype, matrix->rows, matrix->cols);
    if (is_quantised(matrix))
        sum->file += matrix->rows * matrix->row_bytes;
    return HEADRACE_OK;
}

static totals count(const hr_model *model, const hr_backend_options *options)
{
    totals sum = {.exact = options->exact};

    (void)visit_all(model, NULL, count_matrix, &sum, NULL);
    return sum;
}

size_t hr_cpu_weights_bytes(const hr_model *model, const hr_backend_options *options)
{
    size_t packed = count(model, options).packed;

    return packed > 0 ? packed + HUGE_PAGE : 0;
}

/* ---------------------------------------------------------------- memory */

/* The nodes this process may use; false where there is one, or where somebody chose a policy. */
static bool several_nodes(unsigned long nodes[NODES_MAX / (8 * sizeof(unsigned long))])
{
    int policy = MPOL_DEFAULT, n = 0;

    memset(nodes, 0, NODES_MAX / 8);
    if (syscall(SYS_get_mempolicy, &policy, NULL, 0, NULL, 0) != 0 || policy != MPOL_DEFAULT)
        return false;
    if (syscall(SYS_get_mempolicy, NULL, nodes, NODES_MAX, NULL, MPOL_F_MEMS_ALLOWED) != 0)
        return false;
    for (size_t i = 0; i < NODES_MAX / (8 * sizeof *nodes); i++)
        n += __builtin_popcountl(nodes[i]);
    return n > 1;
}

/* Best effort, both: without huge pages or nodes the numbers are the same. */
static void advise(void *at, size_t bytes)
{
    unsigned long nodes[NODES_MAX / (8 * sizeof(unsigned long))];

    (void)madvise(at, bytes, MADV_HUGEPAGE);
    if (several_nodes(nodes))
        (void)syscall(SYS_mbind, at, bytes, MPOL_INTERLEAVE, nodes, NODES_MAX, 0);
}

/* Gives the pages of n bytes back if they are a file's. Pages at the ends may hold neighbours' bytes: those, too, come
 * again. */
static void give_back_pages(const hr_model *model, const void *data, size_t n)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)data / page * page;

    for (uint32_t i = 0; model->file && i < model->file->n_shards; i++) {
        uintptr_t begin = (uintptr_t)model->file->mappings[i].at, end = begin + model->file->mappings[i].len;

        if (begin <= (uintptr_t)data && (uintptr_t)data + n <= end)
            (void)madvise((void *)first, (uintptr_t)data + n - first, MADV_DONTNEED);
    }
}

/* Asks for the pages of a piece that will be read soon. */
static void read_ahead(const hr_matrix *from, uint32_t row, size_t n_rows)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t at = (uintptr_t)from->data + row * from->row_bytes, first = at / page * page;
    size_t left = row < from->rows ? from->rows - row : 0, n = n_rows < left ? n_rows : left;

    if (n > 0)
        (void)madvise((void *)first, at + n * from->row_bytes - first, MADV_WILLNEED);
}

/* ---------------------------------------------------------------- packing */

typedef struct packer {
    const hr_model *model;
    const hr_backend_options *options;
    hr_cpu_pool *pool;
    unsigned char *at, *end;
    totals sum;
    size_t done; /* bytes of the file */
    /* The piece at hand. */
    hr_matrix from;
    bool is_packed; /* else only its scales are looked at */
    uint32_t first_group;
    /* The first thing found wrong in it. */
    pthread_mutex_t lock;
    headrace_status status;
    uint32_t bad_row;
    headrace_error err;
} packer;

/* As hr_pack_groups, without packing. */
static headrace_status check_groups(const hr_matrix *from, uint32_t first, uint32_t last, uint32_t *bad_row,
                                    headrace_error *err)
{
    for (uint32_t row = first * HR_PACK_ROWS; row < from->rows && row < last * HR_PACK_ROWS; row++) {
        *bad_row = row;
        HR_PASS(hr_pack_check_row(from, row, err));
    }
    return HEADRACE_OK;
}

static void pack_loop(void *user, uint32_t worker, uint32_t begin, uint32_t end)
{
    packer *p = user;
    headrace_error err = {0};
    uint32_t first = p->first_group + begin, last = p->first_group + end, bad_row = 0;
    headrace_status status = p->is_packed ? hr_pack_groups(&p->from, first, last, p->at, &bad_row, &err)
                                          : check_groups(&p->from, first, last, &bad_row, &err);

    (void)worker;
    if (status == HEADRACE_OK)
        return;
    (void)pthread_mutex_lock(&p->lock);
    if (p->status == HEADRACE_OK || bad_row < p->bad_row) {
        p->status = status;
        p->bad_row = bad_row;
        p->err = err;
    }
    (void)pthread_mutex_unlock(&p->lock);
}

/* Names the tensor whose bytes the matrix is, or is a copy of. */
static headrace_status name_tensor(const packer *p, headrace_error *err)
{
    const hr_tensor_file *file = p->model->file;
    const hr_tensor *tensor = file ? hr_tensor_file_at(file, p->from.in_file) : NULL;

    if (err)
        *err = p->err;
    if (!tensor)
        return hr_prefix(err, p->status, "a matrix that lies in no file");
    if (tensor->rank > 2) /* experts stand one after the other */
        (void)hr_prefix(err, p->status, "expert %zu",
                        (size_t)((uintptr_t)p->from.in_file - (uintptr_t)tensor->data) /
                            (p->from.rows * p->from.row_bytes));
    return hr_prefix(err, p->status, "%s: tensor '%s'", file->paths[tensor->shard], tensor->name);
}

static headrace_status pack_matrix(void *user, hr_matrix *matrix, bool may_pack, headrace_error *err)
{
    packer *p = user;
    hr_matrix from = *matrix;
    uint32_t n_groups = from.rows / HR_PACK_ROWS + (from.rows % HR_PACK_ROWS != 0);
    size_t group_bytes = HR_PACK_ROWS * from.row_bytes;
    uint32_t most = group_bytes < PIECE_BYTES ? (uint32_t)(PIECE_BYTES / group_bytes) : 1;

    if (!is_quantised(&from))
        return HEADRACE_OK;
    p->from = from;
    p->is_packed = may_pack && !p->options->exact && hr_pack_is_packed(from.dtype);
    HR_ASSERT(!p->is_packed || (size_t)(p->end - p->at) >= hr_pack_bytes(from.dtype, from.rows, from.cols));
    for (uint32_t g = 0; g < n_groups; g += most) {
        uint32_t n = n_groups - g < most ? n_groups - g : most, row = g * HR_PACK_ROWS;
        size_t n_rows = (size_t)n * HR_PACK_ROWS < from.rows - row ? (size_t)n * HR_PACK_ROWS : from.rows - row;

        p->first_group = g;
        read_ahead(&from, row + n * HR_PACK_ROWS, n_rows);
        hr_cpu_pool_run(p->pool, n, 1, pack_loop, p);
        give_back_pages(p->model, (const unsigned char *)from.data + row * from.row_bytes, n_rows * from.row_bytes);
        if (p->status != HEADRACE_OK)
            return name_tensor(p, err);
        p->done += n_rows * from.row_bytes;
        if (p->options->progress)
            p->options->progress(p->done, p->sum.file, p->options->progress_user);
    }
    if (p->is_packed) {
        *matrix = hr_pack_matrix(&from, p->at);
        p->at += hr_pack_bytes(from.dtype, from.rows, from.cols);
    }
    return HEADRACE_OK;
}

/* Once more at the end: a fault maps the pages around it, too, and so brought back some that had been given back. */
static headrace_status give_back_matrix(void *user, hr_matrix *matrix, bool may_pack, headrace_error *err)
{
    const packer *p = user;

    (void)err;
    if (may_pack && hr_pack_is_packed(matrix->dtype))
        give_back_pages(p->model, matrix->data, matrix->rows * matrix->row_bytes);
    return HEADRACE_OK;
}

static headrace_status take_memory(const hr_model *model, hr_cpu_weights *out, size_t packed, headrace_error *err)
{
    size_t n_moe = 0;

    for (uint32_t i = 0; i < model->arch.n_layers; i++)
        n_moe += model->layers[i].is_moe;
    out->own_layers = calloc(model->arch.n_layers, sizeof *out->own_layers);
    out->own_experts = calloc(n_moe * model->arch.n_experts + 1, sizeof *out->own_experts);
    if (!out->own_layers || !out->own_experts)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the table of %u layers", model->arch.n_layers);
    out->memory_bytes = packed + HUGE_PAGE; /* it begins at a huge page inside */
    out->memory = mmap(NULL, out->memory_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (out->memory == MAP_FAILED) {
        out->memory = NULL;
        return hr_fail(err, HEADRACE_E_MEMORY, "%zu bytes for packed weights: %s", out->memory_bytes, strerror(errno));
    }
    return HEADRACE_OK;
}

headrace_status hr_cpu_weights_open(const hr_model *model, const hr_backend_options *options, hr_cpu_pool *pool,
                                    hr_cpu_weights *out, headrace_error *err)
{
    packer p = {.model = model, .options = options, .pool = pool, .sum = count(model, options)};
    headrace_status status;

    *out = (hr_cpu_weights){.layers = model->layers, .head = model->head};
    if (p.sum.file == 0)
        return HEADRACE_OK;
    if (p.sum.packed > 0) {
        HR_PASS(take_memory(model, out, p.sum.packed, err));
        p.at = (unsigned char *)(((uintptr_t)out->memory + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
        p.end = p.at + p.sum.packed;
        advise(p.at, p.sum.packed);
    }
    (void)pthread_mutex_init(&p.lock, NULL);
    status = visit_all(model, p.sum.packed > 0 ? out : NULL, pack_matrix, &p, err);
    (void)pthread_mutex_destroy(&p.lock);
    if (status == HEADRACE_OK && p.sum.packed > 0) {
        out->layers = out->own_layers;
        status = visit_all(model, NULL, give_back_matrix, &p, err);
    }
    return status;
}

void hr_cpu_weights_close(hr_cpu_weights *weights)
{
    free(weights->own_layers);
    free(weights->own_experts);
    if (weights->memory)
        (void)munmap(weights->memory, weights->memory_bytes);
    *weights = (hr_cpu_weights){0};
}
