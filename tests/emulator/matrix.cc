// The arithmetic and the fragment layouts of matrix instructions: the product of a wgmma, mma.sync, ldmatrix, stmatrix.
//
// Products are multiplied and added in two steps, never fused, in ascending order of k. (A product of two bf16 values
// is exact in fp32, so fusing would change nothing but underflow.)
#include "check.h"

#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace simt
{

constexpr int K = 16, M = 64;

static void product_plain(float *c, const float *a, const float *b, int n)
{
    for (int m = 0; m < M; m++)
        for (int k = 0; k < K; k++)
            for (int i = 0; i < n; i++)
                c[m * n + i] += a[k * M + m] * b[k * n + i];
}

#ifdef __x86_64__
// Without the fma extension: the compiler cannot fuse.
__attribute__((target("avx2"))) static void product_avx2(float *c, const float *a, const float *b, int n)
{
    int i = 0;

    for (; i + 16 <= n; i += 16)
        for (int m = 0; m < M; m += 4) {
            __m256 sum[4][2];
            for (int r = 0; r < 4; r++)
                for (int h = 0; h < 2; h++)
                    sum[r][h] = _mm256_loadu_ps(c + (m + r) * n + i + 8 * h);
            for (int k = 0; k < K; k++) {
                const __m256 b0 = _mm256_loadu_ps(b + k * n + i), b1 = _mm256_loadu_ps(b + k * n + i + 8);
                for (int r = 0; r < 4; r++) {
                    const __m256 x = _mm256_broadcast_ss(a + k * M + m + r);
                    sum[r][0] = _mm256_add_ps(sum[r][0], _mm256_mul_ps(x, b0));
                    sum[r][1] = _mm256_add_ps(sum[r][1], _mm256_mul_ps(x, b1));
                }
            }
            for (int r = 0; r < 4; r++)
                for (int h = 0; h < 2; h++)
                    _mm256_storeu_ps(c + (m + r) * n + i + 8 * h, sum[r][h]);
        }
    for (; i < n; i += 8)
        for (int m = 0; m < M; m++) {
            __m256 sum = _mm256_loadu_ps(c + m * n + i);
            for (int k = 0; k < K; k++)
                sum = _mm256_add_ps(sum,
                                    _mm256_mul_ps(_mm256_broadcast_ss(a + k * M + m), _mm256_loadu_ps(b + k * n + i)));
            _mm256_storeu_ps(c + m * n + i, sum);
        }
}
#endif

void product_64(float *c, const float *a, const float *b, int n)
{
#ifdef __x86_64__
    static const bool has_avx2 = __builtin_cpu_supports("avx2");

    if (has_avx2) {
        product_avx2(c, a, b, n);
        return;
    }
#endif
    product_plain(c, a, b, n);
}

// m16n8k16: lane l holds rows l / 4 and l / 4 + 8 of A and D, column l / 4 of B; pairs at 2 (l % 4) along the other
// side.
void mma_body(void **slot, uint32_t, Loc)
{
    float a[16][K], b[K][8], d[16][8];

    for (int l = 0; l < 32; l++) {
        const MmaRequest &q = *static_cast<MmaRequest *>(slot[l]);
        const int row = l / 4, pair = 2 * (l % 4);
        for (int e = 0; e < 2; e++) {
            for (int i = 0; i < 4; i++)
                a[row + 8 * (i & 1)][pair + e + 8 * (i >> 1)] = bf16_value(static_cast<uint16_t>(q.a[i] >> 16 * e));
            for (int i = 0; i < 2; i++)
                b[pair + e + 8 * i][row] = bf16_value(static_cast<uint16_t>(q.b[i] >> 16 * e));
        }
        for (int i = 0; i < 4; i++)
            d[row + 8 * (i >> 1)][pair + (i & 1)] = q.d[i];
    }
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < K; k++)
            for (int n = 0; n < 8; n++)
                d[m][n] += a[m][k] * b[k][n];
    for (int l = 0; l < 32; l++) {
        MmaRequest &q = *static_cast<MmaRequest *>(slot[l]);
        for (int i = 0; i < 4; i++)
            q.d[i] = d[l / 4 + 8 * (i >> 1)][2 * (l % 4) + (i & 1)];
    }
    gang->counters.mma_flops += 2ull * 16 * 8 * K;
}

// Matrix i has its row r at the address of lane 8 i + r. Lane l holds values 2 (l % 4) and the next of row l / 4, or,
// transposed, of column l / 4.
static uint16_t *row_of(void **slot, int i, int r, bool is_write, const char *what, Loc w)
{
    const MatrixRequest &q = *static_cast<MatrixRequest *>(slot[8 * i + r]);
    uint16_t *p = static_cast<uint16_t *>(const_cast<void *>(q.p));

    if (reinterpret_cast<uintptr_t>(p) & 15)
        fail(w, "%s: the row address of lane %d is not 16-byte aligned", what, 8 * i + r);
    check_access(p, 16, is_write ? WRITE : READ, w, nullptr);
    return p;
}

static int lane_of(const MatrixRequest &q, int row, int column)
{
    return q.is_transposed ? column * 4 + row / 2 : row * 4 + column / 2;
}

static int half_of(const MatrixRequest &q, int row, int column)
{
    return q.is_transposed ? row % 2 : column % 2;
}

void ldmatrix_body(void **slot, uint32_t, Loc w)
{
    const MatrixRequest &any = *static_cast<MatrixRequest *>(slot[0]);

    for (int i = 0; i < 4; i++)
        for (int r = 0; r < 8; r++) {
            const uint16_t *p = row_of(slot, i, r, false, "ldmatrix", w);
            for (int c = 0; c < 8; c++) {
                uint32_t &to = static_cast<MatrixRequest *>(slot[lane_of(any, r, c)])->r[i];
                const int shift = 16 * half_of(any, r, c);
                to = (to & ~(0xffffu << shift)) | static_cast<uint32_t>(p[c]) << shift;
            }
        }
}

void stmatrix_body(void **slot, uint32_t, Loc w)
{
    const MatrixRequest &any = *static_cast<MatrixRequest *>(slot[0]);

    for (int i = 0; i < 4; i++)
        for (int r = 0; r < 8; r++) {
            uint16_t *p = row_of(slot, i, r, true, "stmatrix", w);
            for (int c = 0; c < 8; c++)
                p[c] = static_cast<uint16_t>(static_cast<MatrixRequest *>(slot[lane_of(any, r, c)])->r[i] >>
                                             16 * half_of(any, r, c));
        }
}

} // namespace simt
