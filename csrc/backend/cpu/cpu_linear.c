/* Matrix products of a step, and the row loops that feed them.
 *
 * A stage hands out tiles of outputs: each weight is read by one thread, once a step, for all rows, which is what
 * matters when the weights are larger than every cache. Tiles are small enough that each thread gets several, so that a
 * thread that lost its core for a while does not hold up the stage. With one or two rows they are larger: gate and up
 * lie apart, and going from one to the other breaks the stream that the memory system follows.
 */
#include "backend/cpu/cpu.h"

enum {
    INLINE_WORK = 1 << 16, /* multiplications below which waking another thread costs more than it saves */
    SOLO_ROWS = 2,         /* up to here memory alone sets the pace */
};

typedef struct multiply_stage {
    hr_cpu *cpu;
    hr_cpu_product *products;
    uint32_t n, tile;
} multiply_stage;

/* Outputs [begin, end) of w, for all rows of the product. */
static void multiply_tile(const hr_cpu *cpu, hr_cpu_worker *worker, const hr_cpu_product *p, const hr_matrix *w,
                          uint32_t begin, uint32_t end, float *y, size_t stride)
{
    const void *in = p->in.rows[hr_cpu_rows_of(w)];

    if (w->is_packed)
        cpu->kernels->linear_packed(w, begin, end, in, p->n_rows, y, stride, worker->linear_scratch);
    else
        cpu->kernels->linear(w, begin, end, in, p->n_rows, y, stride, worker->linear_scratch);
}

static void gated_tile(hr_cpu *cpu, hr_cpu_worker *worker, const hr_cpu_product *p, uint32_t begin, uint32_t end)
{
    uint32_t n = end - begin;
    float *gate = worker->tile, *up = gate + (size_t)p->n_rows * n;

    multiply_tile(cpu, worker, p, p->w, begin, end, gate, n);
    multiply_tile(cpu, worker, p, p->up, begin, end, up, n);
    for (uint32_t r = 0; r < p->n_rows; r++)
        cpu->kernels->swiglu(gate + (size_t)r * n, up + (size_t)r * n, n, p->out + (size_t)r * p->w->rows + begin);
}

static void linear_tile(hr_cpu *cpu, hr_cpu_worker *worker, const hr_cpu_product *p, uint32_t begin, uint32_t end)
{
    size_t stride = p->w->rows;

    multiply_tile(cpu, worker, p, p->w, begin, end, p->out + begin, stride);
    for (uint32_t r = 0; r < p->n_rows; r++) {
        float *out = p->out + r * stride + begin;

        if (p->bias)
            cpu->kernels->add_scaled(out, p->bias + begin, 1.0f, end - begin);
        if (p->residual)
            cpu->kernels->add_scaled(p->residual + r * stride + begin, out, 1.0f, end - begin);
    }
}

/* The product that tile t belongs to. */
static const hr_cpu_product *product_of(const multiply_stage *stage, uint32_t t)
{
    uint32_t low = 0, high = stage->n;

    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;

        if (stage->products[middle].first_tile <= t)
            low = middle;
        else
            high = middle;
    }
    return &stage->products[low];
}

static void multiply_loop(void *user, uint32_t worker_index, uint32_t begin, uint32_t end)
{
    const multiply_stage *stage = user;
    hr_cpu *cpu = stage->cpu;
    hr_cpu_worker *worker = &cpu->workers[worker_index];

    for (uint32_t t = begin; t < end; t++) {
        const hr_cpu_product *p = product_of(stage, t);
        uint32_t first = (t - p->first_tile) * stage->tile;
        uint32_t last = p->w->rows - first < stage->tile ? p->w->rows : first + stage->tile;

        if (p->up)
            gated_tile(cpu, worker, p, first, last);
        else
            linear_tile(cpu, worker, p, first, last);
    }
}

void hr_cpu_multiply(hr_cpu *cpu, hr_cpu_product *products, uint32_t n)
{
    multiply_stage stage = {.cpu = cpu, .products = products, .n = n, .tile = HR_CPU_TILE_MAX};
    uint64_t n_outputs = 0, work = 0;
    uint32_t n_tiles = 0, most_rows = 0;

    for (uint32_t i = 0; i < n; i++) {
        most_rows = products[i].n_rows > most_rows ? products[i].n_rows : most_rows;
        n_outputs += products[i].w->rows;
        work += (uint64_t)products[i].w->rows * products[i].w->cols * products[i].n_rows;
    }
    if (most_rows <= SOLO_ROWS && most_rows * HR_CPU_TILE_SOLO <= cpu->options.max_rows * HR_CPU_TILE_MAX)
        stage.tile = HR_CPU_TILE_SOLO;
    while (stage.tile > HR_CPU_TILE_MIN && n_outputs / stage.tile < (uint64_t)4 * cpu->n_threads)
        stage.tile /= 2;
    for (uint32_t i = 0; i < n; i++) {
        products[i].first_tile = n_tiles;
        n_tiles += (products[i].w->rows + stage.tile - 1) / stage.tile;
    }
    hr_cpu_pool_run(cpu->pool, n_tiles, work < INLINE_WORK ? n_tiles : 1, multiply_loop, &stage);
}

typedef struct row_stage {
    hr_cpu *cpu;
    const float *in, *weight;
    uint32_t cols;
    hr_cpu_row_kinds kinds;
    const hr_cpu_prepared *to;
} row_stage;

void hr_cpu_prepare_row(const hr_cpu *cpu, const float *in, uint32_t cols, hr_cpu_row_kinds kinds,
                        const hr_cpu_prepared *to, size_t r)
{
    if (kinds & 1u << HR_CPU_ROWS_WIDE)
        cpu->kernels->prepare(in, cols, to->rows[HR_CPU_ROWS_WIDE] + r * cpu->kernels->prepared_bytes(cols));
    if (kinds & 1u << HR_CPU_ROWS_INT8)
        cpu->kernels->prepare_int8(in, cols, to->rows[HR_CPU_ROWS_INT8] + r * hr_int8_row_bytes(cols));
}

static void prepare_loop(void *user, uint32_t worker, uint32_t begin, uint32_t end)
{
    const row_stage *stage = user;

    (void)worker;
    for (size_t r = begin; r < end; r++)
        hr_cpu_prepare_row(stage->cpu, stage->in + r * stage->cols, stage->cols, stage->kinds, stage->to, r);
}

void hr_cpu_prepare_rows(hr_cpu *cpu, const float *in, uint32_t cols, uint32_t n_rows, hr_cpu_row_kinds kinds,
                         const hr_cpu_prepared *to)
{
    row_stage stage = {.cpu = cpu, .in = in, .cols = cols, .kinds = kinds, .to = to};

    hr_cpu_pool_run(cpu->pool, n_rows, hr_cpu_row_grain(cols), prepare_loop, &stage);
}

static void norm_loop(void *user, uint32_t worker, uint32_t begin, uint32_t end)
{
    const row_stage *stage = user;
    hr_cpu *cpu = stage->cpu;
    uint32_t n = cpu->arch->hidden_size;

    for (size_t r = begin; r < end; r++)
        cpu->kernels->rmsnorm(cpu->x + r * n, stage->weight, n, cpu->arch->norm_eps, cpu->norm + r * n);
    prepare_loop(user, worker, begin, end);
}

void hr_cpu_norm_rows(hr_cpu *cpu, const float *weight, hr_cpu_row_kinds kinds)
{
    row_stage stage = {.cpu = cpu,
                       .in = cpu->norm,
                       .weight = weight,
                       .cols = cpu->arch->hidden_size,
                       .kinds = kinds,
                       .to = &cpu->prepared};

    hr_cpu_pool_run(cpu->pool, cpu->n_rows, hr_cpu_row_grain(stage.cols), norm_loop, &stage);
}
