// What the attention tests share: sequences in scattered pages, the step's tables, and the slow reference.
//
// Keys, values and queries are functions of (sequence, position, head, dimension), so that the same row can be asked
// for in any company. Every row of a page that no sequence has written is NaN, and so is every page that no sequence
// owns.
#ifndef TESTS_KERNELS_ATTENTION_CASE_H
#define TESTS_KERNELS_ATTENTION_CASE_H

#include <cuda_runtime.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <vector>

extern "C" {
#include <cmocka.h>
}
#include "attention/scratch.h"
#include "hrk.h"
#include "kernels/support/device_array.h"

namespace attention_case
{

using hrk_test::bf16_value;
using hrk_test::DeviceArray;

enum { D = 64, NAN_BF16 = 0x7fff };

// A bf16 of about normal distribution (the sum of four uniform ones), times `scale`, a power of two.
inline hrk_bf16 value_at(uint32_t kind, uint32_t sequence, uint32_t position, uint32_t head, uint32_t d, float scale)
{
    uint64_t x = ((uint64_t)kind << 58) ^ ((uint64_t)sequence << 44) ^ ((uint64_t)position << 20) ^ (head << 8) ^ d;
    float sum = 0;
    uint32_t u;

    x = (x ^ x >> 31) * 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 29) * 0xbf58476d1ce4e5b9u;
    x ^= x >> 32;
    for (int i = 0; i < 4; i++)
        sum += (float)(x >> 16 * i & 0xffff) / 65536.0f - 0.5f;
    sum *= 1.7320508f * scale;
    memcpy(&u, &sum, sizeof u);
    return (hrk_bf16)(u >> 16);
}
inline hrk_bf16 query_at(uint32_t sequence, uint32_t position, uint32_t head, uint32_t d)
{
    return value_at(1, sequence, position, head, d, 2);
}
inline hrk_bf16 key_at(uint32_t sequence, uint32_t position, uint32_t head, uint32_t d)
{
    return value_at(2, sequence, position, head, d, 1);
}
inline hrk_bf16 cached_value_at(uint32_t sequence, uint32_t position, uint32_t head, uint32_t d)
{
    return value_at(3, sequence, position, head, d, 1);
}

// Consecutive rows of a sequence: as decode items, or as prompt rows in tiles of at most 64 from the first of them on.
struct Rows {
    uint32_t sequence, first_position, n_rows;
    bool is_decode;
};

using Kernel = int (*)(const hrk_attention_args *, const hrk_launch *);

struct World {
    uint32_t Nq, Nkv, P, max_pages;
    std::vector<uint32_t> lengths; // keys written, by sequence; the slot of sequence s is n - 1 - s
    std::vector<uint32_t> table;
    std::vector<hrk_bf16> pool;
    size_t page_stride;
    uint32_t n_sms = 4, spare = 0; // spare: how far the bounds of a launch exceed its counts
    bool programmatic = false;

    World(uint32_t query_heads, uint32_t key_heads, uint32_t page_keys, const std::vector<uint32_t> &n_keys)
        : Nq(query_heads), Nkv(key_heads), P(page_keys), max_pages(1), lengths(n_keys)
    {
        uint32_t n_pages = 3, next = 0;

        for (uint32_t n : lengths) {
            n_pages += (n + P - 1) / P;
            max_pages = (n + P - 1) / P + 1 > max_pages ? (n + P - 1) / P + 1 : max_pages;
        }
        // Another layer lies in the same page, so the stride is more than this layer's part.
        page_stride = (size_t)Nkv * 2 * P * D + 2 * P * D;
        pool.assign(n_pages * page_stride, NAN_BF16);
        table.assign(lengths.size() * max_pages, 0xffffffffu);
        std::vector<uint32_t> order(n_pages);
        for (uint32_t i = 0; i < n_pages; i++) {
            uint32_t j = i * 2654435761u % (i + 1);

            order[i] = order[j];
            order[j] = i;
        }
        for (uint32_t s = 0; s < lengths.size(); s++)
            for (uint32_t i = 0; i * P < lengths[s]; i++, next++) {
                uint32_t page = order[next];

                table[slot(s) * max_pages + i] = page;
                fill(s, i, page);
            }
    }
    uint32_t slot(uint32_t sequence) const
    {
        return (uint32_t)lengths.size() - 1 - sequence;
    }
    void fill(uint32_t s, uint32_t index, uint32_t page)
    {
        for (uint32_t b = 0; b < Nkv; b++)
            for (uint32_t o = 0; o < P && index * P + o < lengths[s]; o++)
                for (uint32_t d = 0; d < D; d++) {
                    size_t at =
                        (size_t)page * page_stride + ((size_t)b * 2 * P + o) * D + ((d / 8) ^ (o & 7)) * 8 + d % 8;

                    pool[at] = key_at(s, index * P + o, b, d);
                    pool[at + (size_t)P * D] = cached_value_at(s, index * P + o, b, d);
                }
    }

    // Runs the kernels one after the other over rows in the order given; returns [rows, Nq D], NaN where none wrote.
    std::vector<hrk_bf16> run(const std::vector<Kernel> &kernels, const std::vector<Rows> &rows) const
    {
        std::vector<hrk_decode_item> items;
        std::vector<hrk_prefill_tile> tiles;
        std::vector<hrk_bf16> queries;
        uint32_t n_rows = 0, n_chunks = 0;

        for (const Rows &r : rows) {
            for (uint32_t i = 0; i < r.n_rows; i++, n_rows++) {
                uint32_t position = r.first_position + i;

                for (uint32_t h = 0; h < Nq; h++)
                    for (uint32_t d = 0; d < D; d++)
                        queries.push_back(query_at(r.sequence, position, h, d));
                if (r.is_decode) {
                    items.push_back({n_rows, slot(r.sequence), position + 1, n_chunks});
                    n_chunks += (position + HRK_DECODE_CHUNK) / HRK_DECODE_CHUNK;
                } else if (i % HRK_PREFILL_TILE == 0) {
                    uint32_t n = r.n_rows - i < HRK_PREFILL_TILE ? r.n_rows - i : (uint32_t)HRK_PREFILL_TILE;

                    tiles.push_back({n_rows, n, slot(r.sequence), position});
                }
            }
        }
        return launch(kernels, items, tiles, queries, n_rows, n_chunks);
    }
    std::vector<hrk_bf16> launch(const std::vector<Kernel> &kernels, const std::vector<hrk_decode_item> &items,
                                 const std::vector<hrk_prefill_tile> &tiles, const std::vector<hrk_bf16> &queries,
                                 uint32_t n_rows, uint32_t n_chunks) const
    {
        hrk_step step = {};
        step.n_rows = n_rows;
        step.n_decode_items = (uint32_t)items.size();
        step.n_prefill_tiles = (uint32_t)tiles.size();
        step.n_chunk_items = n_chunks;
        step.decode_at = sizeof step;
        step.prefill_at = step.decode_at + (uint32_t)(items.size() * sizeof items[0]);
        std::vector<unsigned char> block(step.prefill_at + tiles.size() * sizeof(hrk_prefill_tile) + 16);
        memcpy(block.data(), &step, sizeof step);
        if (!items.empty())
            memcpy(block.data() + step.decode_at, items.data(), items.size() * sizeof items[0]);
        if (!tiles.empty())
            memcpy(block.data() + step.prefill_at, tiles.data(), tiles.size() * sizeof tiles[0]);

        uint32_t max_items = step.n_decode_items + spare, max_chunks = n_chunks + spare;
        size_t scratch_bytes = hrk_attention_scratch(max_items, max_chunks, Nq, D);
        DeviceArray<unsigned char> upload(block), scratch(std::vector<unsigned char>(scratch_bytes, 0));
        DeviceArray<uint32_t> pages(table);
        DeviceArray<hrk_bf16> kv(pool), q(queries), out(std::vector<hrk_bf16>((size_t)n_rows * Nq * D, NAN_BF16));
        hrk_attention_args args = {};
        args.tables.step = reinterpret_cast<const hrk_step *>(upload.data());
        args.tables.page_table = pages.data();
        args.tables.max_pages = max_pages;
        args.max_decode_items = max_items;
        args.max_chunk_items = max_chunks;
        args.max_prefill_tiles = step.n_prefill_tiles + spare;
        args.q = q.data();
        args.Nq = Nq;
        args.kv = {kv.data(), page_stride, P, Nkv, D, true};
        args.out = out.data();
        args.scratch = scratch.data();
        hrk_launch on = {nullptr, n_sms, programmatic, false};
        for (Kernel kernel : kernels)
            for (int again = 0; again < 2; again++) // twice: the first leaves scratch as the second needs it
                assert_int_equal(kernel(&args, &on), 0);
        assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
        check_clean(scratch.get(), n_chunks);
        return out.get();
    }
    // The ticket and every counter are zero again.
    void check_clean(std::vector<unsigned char> scratch, uint32_t n_chunks) const
    {
        for (size_t i = 0; i < hrk::SCRATCH_HEADER; i++)
            assert_int_equal(scratch[i], 0);
        for (uint32_t c = 0; c < n_chunks; c++)
            for (uint32_t b = 0; b < Nkv; b++)
                assert_int_equal(hrk::chunk_record(scratch.data(), c, Nq, D).counters[b], 0);
    }

    // Row r of `out` (of sequence s at a position) against a double loop over the sequence.
    void check_row(const hrk_bf16 *out, uint32_t s, uint32_t position) const
    {
        double error = 0, norm = 0;

        for (uint32_t h = 0; h < Nq; h++) {
            std::vector<double> p(position + 1);
            double sum = 0, largest = -1e300;
            uint32_t b = h / (Nq / Nkv);

            for (uint32_t t = 0; t <= position; t++) {
                for (uint32_t d = 0; d < D; d++)
                    p[t] += (double)bf16_value(query_at(s, position, h, d)) * (double)bf16_value(key_at(s, t, b, d));
                p[t] /= 8;
                largest = p[t] > largest ? p[t] : largest;
            }
            for (double &x : p)
                sum += x = exp(x - largest);
            for (uint32_t d = 0; d < D; d++) {
                double want = 0;

                for (uint32_t t = 0; t <= position; t++)
                    want += p[t] * (double)bf16_value(cached_value_at(s, t, b, d));
                want /= sum;
                error += (want - (double)bf16_value(out[h * D + d])) * (want - (double)bf16_value(out[h * D + d]));
                norm += want * want;
            }
        }
        if (!(sqrt(error / norm) <= 4e-3))
            fail_msg("sequence %u (%u keys), position %u: relative error %g", s, lengths[s], position,
                     sqrt(error / norm));
    }
    // Every row that `which` names (decode rows or prompt rows) against the reference, `every`-th only.
    void check(const std::vector<hrk_bf16> &out, const std::vector<Rows> &rows, bool is_decode,
               uint32_t every = 1) const
    {
        size_t row = 0;

        for (const Rows &r : rows)
            for (uint32_t i = 0; i < r.n_rows; i++, row++)
                if (r.is_decode == is_decode && (i % every == 0 || i + 1 == r.n_rows))
                    check_row(&out[row * Nq * D], r.sequence, r.first_position + i);
    }
};

inline std::vector<hrk_bf16> row_of(const World &w, const std::vector<hrk_bf16> &out, size_t row)
{
    auto at = out.begin() + (ptrdiff_t)(row * w.Nq * D);

    return {at, at + (ptrdiff_t)(w.Nq * D)};
}

} // namespace attention_case

#endif
