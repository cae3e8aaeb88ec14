// Weights of a GGUF block format in three readings: the file's blocks, the bf16 values that they stand for by the
// definition (hr_dequantize, rounded), and the quantised tiles that hrk_pack_quantised makes on the device.
#pragma once

#include "kernels/support/device_array.h"
#include "kernels/support/tiled_matrix.h"

extern "C" {
#include "format/dtype.h"
}

namespace hrk_test
{

struct QuantisedFormat {
    hrk_layout layout;
    hr_dtype dtype;
    const char *name;
};
const QuantisedFormat QUANTISED_FORMATS[] = {{HRK_TILED_Q4_0, HR_Q4_0, "Q4_0"},
                                             {HRK_TILED_Q8_0, HR_Q8_0, "Q8_0"},
                                             {HRK_TILED_Q4_K, HR_Q4_K, "Q4_K"},
                                             {HRK_TILED_Q5_K, HR_Q5_K, "Q5_K"},
                                             {HRK_TILED_Q6_K, HR_Q6_K, "Q6_K"}};

// fp16 bits of both signs and magnitudes 2^-16 (a denormal) to 2^-7.
inline uint16_t random_half(Random &random)
{
    return (uint16_t)(random.below(2) << 15 | random.below(9) << 10 | random.below(1024));
}

// Random blocks: every bit pattern but scales that are not finite.
inline std::vector<uint8_t> random_blocks(hr_dtype dtype, size_t n_blocks, uint64_t seed)
{
    const size_t bytes = hr_dtypes[dtype].block_bytes, d_at = dtype == HR_Q6_K ? 208 : 0;
    std::vector<uint8_t> blocks(n_blocks * bytes);
    Random random(seed);

    for (uint8_t &b : blocks)
        b = (uint8_t)random.next();
    for (size_t i = 0; i < n_blocks; i++) {
        for (size_t h = 0; h < (dtype == HR_Q4_K || dtype == HR_Q5_K ? 2u : 1u); h++) {
            const uint16_t half = random_half(random);

            memcpy(&blocks[i * bytes + d_at + 2 * h], &half, 2);
        }
    }
    return blocks;
}

struct QuantisedMatrix {
    QuantisedFormat format;
    std::vector<uint8_t> blocks; // [n_stack, n_groups, rows] rows
    Matrix plain;                // the values they stand for
    DeviceArray<uint8_t> packed;

    QuantisedMatrix(const QuantisedFormat &format_, uint32_t rows, uint32_t cols, uint32_t n_groups, uint32_t n_stack,
                    uint64_t seed, bool pair_rotary = false)
        : format(format_),
          blocks(random_blocks(
              format_.dtype, (size_t)n_stack * n_groups * rows * (cols / hr_dtypes[format_.dtype].block_values), seed)),
          plain(rows, cols, n_groups, n_stack, seed), packed(bytes() * n_stack)
    {
        hr_dequantize(format.dtype, blocks.data(), plain.values.data(), plain.values.size());
        for (float &v : plain.values)
            v = bf16_rounded(v);
        pack(packed.data(), 0, pair_rotary);
    }
    size_t bytes() const
    {
        return hrk_matrix_bytes(plain.rows, plain.cols, plain.n_groups, format.layout);
    }
    size_t member_bytes() const // of the file, of one group member
    {
        return plain.rows * hr_dtype_row_bytes(format.dtype, plain.cols);
    }
    // In pieces of so many rows (0: all at once).
    void pack(uint8_t *to, uint32_t piece, bool pair_rotary) const
    {
        const hrk_launch on = {nullptr, 2, false, false};
        const uint32_t step = piece ? piece : plain.rows;
        DeviceArray<uint8_t> from(blocks);

        for (uint32_t e = 0; e < plain.n_stack; e++) {
            for (uint32_t g = 0; g < plain.n_groups; g++) {
                for (uint32_t first = 0; first < plain.rows; first += step) {
                    const uint8_t *rows = from.data() + (e * plain.n_groups + g) * member_bytes();
                    hrk_pack_quantised_args args = {};

                    args.from = rows + first * hr_dtype_row_bytes(format.dtype, plain.cols);
                    args.to = to;
                    args.rows = plain.rows;
                    args.cols = plain.cols;
                    args.n_groups = plain.n_groups;
                    args.group = g;
                    args.stack = e;
                    args.first_row = first;
                    args.n_rows = plain.rows - first < step ? plain.rows - first : step;
                    args.layout = format.layout;
                    args.pair_rotary = pair_rotary;
                    run_to_end(hrk_pack_quantised(&args, &on));
                }
            }
        }
    }
    hrk_matrix describe() const
    {
        return plain.describe(reinterpret_cast<const hrk_bf16 *>(packed.data()), format.layout);
    }
};

// The very bits, of bf16 or fp32 results.
template <class T> void expect_equal(const std::vector<T> &got, const std::vector<T> &want, const char *format, int v)
{
    assert_int_equal(got.size(), want.size());
    for (size_t i = 0; i < got.size(); i++) {
        if (memcmp(&got[i], &want[i], sizeof(T)) != 0)
            fail_msg("%s, variant %d: value %zu differs", format, v, i);
    }
}

} // namespace hrk_test
