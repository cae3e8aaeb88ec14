// What the tests of the products with tiled weights share: matrices in both layouts, packed by a plain loop;
// activations; a step's upload block; the slow product; comparisons.
#pragma once

#include "kernels/support/device_array.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

extern "C" {
#include <cmocka.h>
}

namespace hrk_test
{

// Weights of n_stack x n_groups matrices, bf16 values kept as floats.
struct Matrix {
    uint32_t rows, cols, n_groups, n_stack;
    std::vector<float> values;

    Matrix(uint32_t rows_, uint32_t cols_, uint32_t n_groups_, uint32_t n_stack_, uint64_t seed)
        : rows(rows_), cols(cols_), n_groups(n_groups_), n_stack(n_stack_)
    {
        Random random(seed);

        values.resize((size_t)n_stack * n_groups * rows * cols);
        for (float &v : values)
            v = bf16_rounded(random.normal() / sqrtf((float)cols));
    }
    float at(uint32_t stack, uint32_t group, uint32_t row, uint32_t col) const
    {
        return values[(((size_t)stack * n_groups + group) * rows + row) * cols + col];
    }
    // hrk_matrix's tiled layout. stored_row: where a row of a strip is kept (its own place by default).
    std::vector<hrk_bf16> tiled(uint32_t (*stored_row)(uint32_t) = nullptr) const
    {
        const size_t member = hrk_matrix_values(rows, cols, n_groups, HRK_TILED);
        const uint32_t k_blocks = hrk_ld(cols) / 64;
        std::vector<hrk_bf16> to(member * n_stack, 0);

        for (uint32_t e = 0; e < n_stack; e++) {
            for (uint32_t g = 0; g < n_groups; g++) {
                for (uint32_t row = 0; row < rows; row++) {
                    const uint32_t r = stored_row ? stored_row(row % 64) : row % 64;

                    for (uint32_t col = 0; col < cols; col++) {
                        const size_t block = ((size_t)(row / 64) * k_blocks + col / 64) * n_groups + g;
                        const uint32_t piece = col % 64 / 8 ^ (r & 7);

                        to[e * member + block * 4096 + r * 64 + piece * 8 + col % 8] = bf16_bits(at(e, g, row, col));
                    }
                }
            }
        }
        return to;
    }
    std::vector<hrk_bf16> row_major() const
    {
        const uint32_t ld = hrk_ld(cols);
        std::vector<hrk_bf16> to((size_t)n_stack * n_groups * rows * ld, 0);

        for (size_t r = 0; r < (size_t)n_stack * n_groups * rows; r++) {
            for (uint32_t col = 0; col < cols; col++)
                to[r * ld + col] = bf16_bits(values[r * cols + col]);
        }
        return to;
    }
    hrk_matrix describe(const hrk_bf16 *data, hrk_layout layout) const
    {
        return hrk_matrix{data, rows, cols, n_groups, n_stack, layout};
    }
};

// Rows of `cols` random bf16 values, zero-padded to hrk_ld(cols). Row i depends on (seed, ids[i]) alone.
inline std::vector<hrk_bf16> rows_of(const std::vector<uint32_t> &ids, uint32_t cols, uint64_t seed)
{
    const uint32_t ld = hrk_ld(cols);
    std::vector<hrk_bf16> x(ids.size() * ld, 0);

    for (size_t i = 0; i < ids.size(); i++) {
        Random random(seed * 1000003u + ids[i]);

        for (uint32_t col = 0; col < cols; col++)
            x[i * ld + col] = bf16_bits(random.normal());
    }
    return x;
}
inline std::vector<uint32_t> ids_up_to(uint32_t n)
{
    std::vector<uint32_t> ids(n);

    for (uint32_t i = 0; i < n; i++)
        ids[i] = i;
    return ids;
}

// One row of one matrix times one row of activations.
inline float product(const Matrix &m, uint32_t stack, uint32_t group, uint32_t row, const hrk_bf16 *x)
{
    const float *w = &m.values[(((size_t)stack * m.n_groups + group) * m.rows + row) * m.cols];
    double sum = 0;

    for (uint32_t col = 0; col < m.cols; col++)
        sum += (double)w[col] * (double)bf16_value(x[col]);
    return (float)sum;
}

// An upload block with counts, spans and outputs.
inline std::vector<unsigned char> step_block(uint32_t n_rows, uint32_t n_outputs,
                                             const std::vector<hrk_span> &spans = {})
{
    hrk_step step = {};
    std::vector<unsigned char> block(sizeof step + spans.size() * sizeof(hrk_span));

    step.n_rows = n_rows;
    step.n_outputs = n_outputs;
    step.n_spans = (uint32_t)spans.size();
    step.spans_at = sizeof step;
    memcpy(block.data(), &step, sizeof step);
    if (!spans.empty())
        memcpy(block.data() + sizeof step, spans.data(), spans.size() * sizeof(hrk_span));
    return block;
}
inline const hrk_step *as_step(const DeviceArray<unsigned char> &block)
{
    return reinterpret_cast<const hrk_step *>(block.data());
}

// ||got - want|| / ||want||; a huge number if anything is not finite.
inline double relative_error(const std::vector<float> &got, const std::vector<float> &want)
{
    double difference = 0, norm = 0;

    for (size_t i = 0; i < want.size(); i++) {
        if (!isfinite(got[i]))
            return 1e30;
        difference += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        norm += (double)want[i] * (double)want[i];
    }
    return norm > 0 ? sqrt(difference / norm) : sqrt(difference);
}

// Columns [0, n) of rows [0, n_rows) of a bf16 array, as floats.
inline std::vector<float> values_of(const std::vector<hrk_bf16> &array, uint32_t n_rows, uint32_t n)
{
    std::vector<float> values;

    for (uint32_t r = 0; r < n_rows; r++) {
        for (uint32_t i = 0; i < n; i++)
            values.push_back(bf16_value(array[(size_t)r * hrk_ld(n) + i]));
    }
    return values;
}

// Padding of the rows that were asked for is zero; rows from n_rows on are as DeviceArray left them.
inline void assert_padding_and_strangers(const std::vector<hrk_bf16> &array, uint32_t n_rows, uint32_t n)
{
    const uint32_t ld = hrk_ld(n);

    for (uint32_t r = 0; r < n_rows; r++) {
        for (uint32_t i = n; i < ld; i++)
            assert_int_equal(array[(size_t)r * ld + i], 0);
    }
    for (size_t i = (size_t)n_rows * ld; i < array.size(); i++)
        assert_int_equal(array[i], 0xffff);
}

inline void run_to_end(int launched)
{
    assert_int_equal(launched, cudaSuccess);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
}

} // namespace hrk_test
