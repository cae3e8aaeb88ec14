/* Peaks of reading and of multiplying, so that a kernel's figure can be given as a share of what the machine does at
 * that hour.
 *
 * Compiled for the base instruction set; each function names its own with a target attribute and is called only where
 * the kernels of that level are usable.
 */
#include "bench_cpu_roofs.h"

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx2"))) static uint64_t read_avx2(const unsigned char *at, size_t n)
{
    __m256i sum[8];
    __m256i all = _mm256_setzero_si256();

    for (int i = 0; i < 8; i++)
        sum[i] = _mm256_setzero_si256();
    for (size_t done = 0; done < n; done += 256) {
        for (int i = 0; i < 8; i++)
            sum[i] = _mm256_add_epi64(sum[i],
                                      _mm256_loadu_si256((const __m256i *)(const void *)(at + done + (size_t)i * 32)));
    }
    for (int i = 0; i < 8; i++)
        all = _mm256_add_epi64(all, sum[i]);
    return (uint64_t)_mm256_extract_epi64(all, 0) + (uint64_t)_mm256_extract_epi64(all, 2);
}

/* Twelve chains: latency 5 times two units is ten. The empty statements keep the compiler from folding equal chains. */
#define MULTIPLY(NAME, TARGET, VECTOR, ZERO, STEP, FLOPS)                                                 \
    __attribute__((target(TARGET))) static double NAME(size_t n)                                          \
    {                                                                                                     \
        VECTOR c0 = ZERO, c1 = ZERO, c2 = ZERO, c3 = ZERO, c4 = ZERO, c5 = ZERO;                          \
        VECTOR c6 = ZERO, c7 = ZERO, c8 = ZERO, c9 = ZERO, c10 = ZERO, c11 = ZERO;                        \
        VECTOR x = ZERO;                                                                                  \
                                                                                                          \
        __asm__ volatile("" : "+v"(c0), "+v"(c1), "+v"(c2), "+v"(c3), "+v"(c4), "+v"(c5));                \
        __asm__ volatile("" : "+v"(c6), "+v"(c7), "+v"(c8), "+v"(c9), "+v"(c10), "+v"(c11));              \
        for (size_t i = 0; i < n; i++) {                                                                  \
            __asm__ volatile("" : "+v"(x));                                                               \
            c0 = STEP(c0), c1 = STEP(c1), c2 = STEP(c2), c3 = STEP(c3), c4 = STEP(c4), c5 = STEP(c5);     \
            c6 = STEP(c6), c7 = STEP(c7), c8 = STEP(c8), c9 = STEP(c9), c10 = STEP(c10), c11 = STEP(c11); \
        }                                                                                                 \
        __asm__ volatile("" ::"v"(c0), "v"(c1), "v"(c2), "v"(c3), "v"(c4), "v"(c5));                      \
        __asm__ volatile("" ::"v"(c6), "v"(c7), "v"(c8), "v"(c9), "v"(c10), "v"(c11));                    \
        return (double)n * 12 * (FLOPS);                                                                  \
    }
#define STEP_BYTES256(C) _mm256_maddubs_epi16(C, x)
#define STEP_BYTES512(C) _mm512_maddubs_epi16(C, x)
#define STEP_VNNI512(C) _mm512_dpbusd_epi32(C, x, x)
#define STEP_VNNI256(C) _mm256_dpbusd_avx_epi32(C, x, x)
#define STEP256(C) _mm256_fmadd_ps(x, x, C)
#define STEP512(C) _mm512_fmadd_ps(x, x, C)
#define STEP_DOT(C) _mm512_dpbf16_ps(C, (__m512bh)x, (__m512bh)x)
MULTIPLY(multiply_avx2, "avx2,fma", __m256, _mm256_setzero_ps(), STEP256, 16)
MULTIPLY(multiply_avx512, "avx512f", __m512, _mm512_setzero_ps(), STEP512, 32)
MULTIPLY(multiply_dot, "avx512f,avx512bw,avx512bf16", __m512, _mm512_setzero_ps(), STEP_DOT, 64)
MULTIPLY(multiply_bytes_avx2, "avx2", __m256i, _mm256_setzero_si256(), STEP_BYTES256, 64)
MULTIPLY(multiply_bytes_avx2_vnni, "avx2,avxvnni", __m256i, _mm256_setzero_si256(), STEP_VNNI256, 64)
MULTIPLY(multiply_bytes_avx512, "avx512f,avx512bw", __m512i, _mm512_setzero_si512(), STEP_BYTES512, 128)
MULTIPLY(multiply_bytes_avx512_vnni, "avx512f,avx512bw,avx512vnni", __m512i, _mm512_setzero_si512(), STEP_VNNI512, 128)

/* Four tiles of sums, one of each operand at full size. */
__attribute__((target("amx-tile,amx-int8"))) static double multiply_tiles(size_t n)
{
    struct {
        uint8_t palette, start_row, unused[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config __attribute__((aligned(64))) = {.palette = 1};

    for (int i = 0; i < 6; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = 16;
    }
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    for (size_t i = 0; i < n; i++) {
        _tile_dpbssd(0, 4, 5);
        _tile_dpbssd(1, 4, 5);
        _tile_dpbssd(2, 4, 5);
        _tile_dpbssd(3, 4, 5);
    }
    _tile_release();
    return (double)n * 4 * 16 * 16 * 64 * 2;
}

#endif

static uint64_t read_plain(const unsigned char *at, size_t n)
{
    const uint64_t *words = (const uint64_t *)(const void *)at;
    uint64_t sum[4] = {0};

    for (size_t i = 0; i < n / 8; i += 4) {
        sum[0] += words[i];
        sum[1] += words[i + 1];
        sum[2] += words[i + 2];
        sum[3] += words[i + 3];
    }
    return sum[0] + sum[1] + sum[2] + sum[3];
}

static double multiply_plain(size_t n)
{
    volatile float keep;
    float sum[8] = {0}, x = 1e-3f;

    for (size_t i = 0; i < n; i++) {
        for (int k = 0; k < 8; k++)
            sum[k] += x * sum[k];
        x += 1e-9f;
    }
    keep = sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
    (void)keep;
    return (double)n * 16;
}

uint64_t bench_read(const unsigned char *at, size_t n, bench_level level)
{
#if defined(__x86_64__)
    if (level >= BENCH_AVX2)
        return read_avx2(at, n);
#endif
    (void)level;
    return read_plain(at, n);
}

double bench_multiply(size_t n, bench_level level)
{
#if defined(__x86_64__)
    switch (level) {
    case BENCH_AVX2:
        return multiply_avx2(n);
    case BENCH_AVX512:
        return multiply_avx512(n);
    case BENCH_AVX512_BF16:
        return multiply_dot(n);
    case BENCH_BYTES_AVX2:
        return multiply_bytes_avx2(n);
    case BENCH_BYTES_AVX2_VNNI:
        return multiply_bytes_avx2_vnni(n);
    case BENCH_BYTES_AVX512:
        return multiply_bytes_avx512(n);
    case BENCH_BYTES_AVX512_VNNI:
        return multiply_bytes_avx512_vnni(n);
    case BENCH_BYTES_AMX:
        return multiply_tiles(n / 8);
    default:
        break;
    }
#endif
    return multiply_plain(n);
}
