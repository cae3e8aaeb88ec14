// The host's side of the wgmma kernels: which compiled tile shape a launch takes, its grid, and what all of them
// refuse.
//
// The choice looks at upper bounds only (rows of the step, experts), from a model of counts: nothing is measured at run
// time, and the result of a kernel does not depend on it. A wrong choice costs time, never bits.
#pragma once

#include "common/launch.h"
#include "linear/wgmma.h"
#include "linear/wgmma_pipeline.h"

namespace hrk
{
namespace wgmma
{

// A compiled shape, for the choice among them.
struct Variant {
    uint32_t n, rows, strips, groups, parts, threads, smem, per_sm, is_quantised;
};
template <class S> constexpr Variant variant_of()
{
    return Variant{S::N, S::ROWS, S::STRIPS, S::GROUPS, S::PARTS, S::THREADS, S::SMEM, S::PER_SM, S::IS_QUANTISED};
}

inline uint32_t m_tiles(const Variant &v, uint32_t n_strips)
{
    return v.parts > 1 ? n_strips * v.parts : (n_strips + v.strips - 1) / v.strips;
}

// The work that a launch is expected to have, for the choice of a variant; the result does not depend on it.
struct Load {
    uint32_t k_blocks, n_strips, matrices, rows_each, overlap;
    double row_bytes; // of a weight row in one block of 64 columns
};

// Cycles that a variant should take, from counts alone. A multiprocessor does 2,048 multiply-adds a cycle, reads 128
// bytes of shared memory (wgmma reads both operands from there), and draws at most some 48 bytes from the L2 cache; all
// of them together draw some 32 each from there, and some 14 each from memory. A warp expands its slice of quantised
// weights in some 220 instructions; the warps of a block's consumers that share a scheduler take turns.
inline double estimate(const Variant &v, const Load &l, uint32_t n_sms)
{
    const double tiles = (double)l.matrices * m_tiles(v, l.n_strips) * token_tiles(l.rows_each, v.n, l.overlap);
    const double waves = (double)(uint64_t)((tiles + n_sms - 1) / n_sms);
    const double instruction = v.n / 2.0 > 16 + v.n / 4.0 ? v.n / 2.0 : 16 + v.n / 4.0;
    const double multiply = 4.0 * instruction * v.strips * v.groups;
    const double tokens = l.rows_each < v.n ? l.rows_each : v.n;
    const double bytes = l.row_bytes * v.rows * v.strips * v.groups + 128.0 * tokens; // of a tile and K block
    const double expand = v.is_quantised ? 220.0 * v.strips * v.groups : 0;
    const double arithmetic = multiply > expand ? multiply : expand;
    const double ends = (1500.0 + 8.0 * v.n) / v.per_sm;
    const double busy = waves * (l.k_blocks * (arithmetic > bytes / 48 ? arithmetic : bytes / 48) + ends);
    const double cache = tiles * l.k_blocks * bytes / (32.0 * n_sms) + ends;
    const double memory = 64 * l.row_bytes * l.matrices * l.n_strips * v.groups * l.k_blocks / (14.0 * n_sms) + ends;
    const double copies = cache > memory ? cache : memory, most = busy > copies ? busy : copies;

    const double expanded = tiles * l.k_blocks * expand / n_sms; // again for each tile of tokens: heat, if not time

    return most + (busy + cache + memory + expanded - most) / 8; // they overlap, but not wholly
}

// A compiled kernel and its shape.
template <class Params> struct Choice {
    void (*kernel)(Params);
    Variant shape;
};

// The variant that was asked for, or the one that should be quickest. -1: it cannot do K, which is no multiple of its
// stage.
template <class Params, int n>
int choose(const Choice<Params> (&choices)[n], int variant, const Load &l, uint32_t n_sms)
{
    double least = -1;

    if (variant == PICK_VARIANT) {
        for (int i = 0; i < n; i++) {
            const double cycles = estimate(choices[i].shape, l, n_sms);

            if (l.k_blocks % choices[i].shape.parts == 0 && (least < 0 || cycles < 0.98 * least)) {
                least = cycles;
                variant = i;
            }
        }
    }
    return variant >= 0 && variant < n && l.k_blocks % choices[variant].shape.parts == 0 ? variant : -1;
}

// One matrix over max_rows rows.
inline Load dense_load(const hrk_matrix &w, uint32_t max_rows, uint32_t overlap)
{
    const hrk_slice s = hrk_slice_of(w.layout);

    return Load{hrk_ld(w.cols) / K_BLOCK,
                hrk_ld(w.rows) / STRIP,
                1,
                max_rows,
                overlap,
                hrk_is_quantised(w.layout) ? s.bytes / 16.0 + s.head / 64.0 : 128.0};
}

// Rows that a loaded expert is expected to have, and how many experts have any.
inline Load expert_load(const Load &dense, uint32_t max_rows, uint32_t E, uint32_t K)
{
    Load l = dense;
    const uint32_t pairs = max_rows * K;

    l.matrices = pairs < E ? pairs : E;
    l.rows_each = (uint32_t)(((uint64_t)pairs * 7 / 5 + E - 1) / E); // 1.4 times the mean
    return l;
}

// Fills what follows from the matrix and the variant.
inline void set_matrix(Problem *p, const hrk_matrix &w, const Variant &v)
{
    const uint64_t pairs = (uint64_t)p->max_rows * p->choices;

    p->weights = w.data;
    p->k_blocks = hrk_ld(w.cols) / K_BLOCK;
    p->n_strips = hrk_ld(w.rows) / STRIP;
    p->m_tiles = m_tiles(v, p->n_strips);
    p->expert_values = hrk_matrix_values(w.rows, w.cols, w.n_groups, HRK_TILED);
    p->expert_bytes = hrk_matrix_bytes(w.rows, w.cols, w.n_groups, w.layout);
    p->segments[0] = Segment{reinterpret_cast<const unsigned char *>(w.data), 0, w.layout};
    p->n_segments = 1;
    p->read_once = pairs <= (uint64_t)v.n * (p->first == nullptr ? 1 : p->n_experts);
}

// Blocks of the persistent grid.
inline LaunchShape grid_of(const Variant &v, const Problem &p, uint32_t n_sms)
{
    uint64_t tiles = p.first == nullptr ? (uint64_t)p.m_tiles * token_tiles(p.max_rows, v.n, p.overlap)
                                        : (uint64_t)p.m_tiles * p.max_rows * p.choices;
    uint64_t blocks = (uint64_t)n_sms * v.per_sm;

    return LaunchShape{dim3((unsigned)(tiles < blocks ? tiles : blocks)), dim3(v.threads), v.smem, 1};
}

// Whether rows of so many columns exist in a quantised format.
inline bool has_whole_blocks(hrk_layout layout, uint32_t cols)
{
    return cols % (hrk_slice_of(layout).head > 0 ? 256 : 32) == 0;
}

// What every kernel of the family refuses: other layouts, and offsets beyond 32 bits.
inline bool is_tiled(const hrk_matrix &w, uint32_t n_groups, uint32_t max_rows)
{
    return (w.layout == HRK_TILED || (hrk_is_quantised(w.layout) && has_whole_blocks(w.layout, w.cols))) &&
           w.n_groups == n_groups && w.rows > 0 && w.cols > 0 && w.n_stack > 0 &&
           (uint64_t)max_rows * hrk_ld(w.cols) < UINT32_MAX;
}

} // namespace wgmma
} // namespace hrk
