/* Which table of kernels runs on this machine.
 *
 * What the CPU lists (cpuid) is not what a program may use: the operating system must save the wide registers (xgetbv),
 * and virtual machines exist that list an instruction set and fault on it. So a table runs only if cpuid lists its
 * instructions, XCR0 grants the registers, and the table computes right answers here, now, under a guard against SIGILL
 * (cpu_self_test.c). The choice is made once per process, from the fastest table down, and ends at the first that is
 * right: proving all of them would take longer than a small model's first token. Others are proven when somebody asks.
 * cpuid is asked directly and not through __builtin_cpu_supports, whose list of names differs between the compilers
 * that we support.
 *
 * Tables stand from the slowest to the fastest; HEADRACE_CPU names the highest one allowed. The plain table is always
 * usable.
 */
#include "backend/cpu/cpu_kernels.h"
#include "backend/cpu/cpu_self_test.h"
#include "base/log.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum {
    NEEDS_AVX2 = 1,         /* AVX2, FMA, F16C, ymm saved */
    NEEDS_AVX512 = 2,       /* F, BW, VL, DQ, zmm and masks saved */
    NEEDS_AVX512_BF16 = 4,  /* vdpbf16ps */
    NEEDS_AVX_VNNI = 8,     /* vpdpbusd on ymm without AVX-512 */
    NEEDS_AVX512_VNNI = 16, /* vpdpbusd on zmm */
    NEEDS_AMX = 32,         /* tiles, their int8 products; the system lets us use them */
};

typedef struct candidate {
    const hr_cpu_kernels *table;
    unsigned needs;
} candidate;

static const candidate candidates[] = {
    {&hr_cpu_kernels_plain, 0},
#ifdef __x86_64__
    {&hr_cpu_kernels_avx2, NEEDS_AVX2},
    {&hr_cpu_kernels_avx2_vnni, NEEDS_AVX2 | NEEDS_AVX_VNNI},
    {&hr_cpu_kernels_avx512, NEEDS_AVX2 | NEEDS_AVX512},
    {&hr_cpu_kernels_avx512_vnni, NEEDS_AVX2 | NEEDS_AVX512 | NEEDS_AVX512_VNNI},
    {&hr_cpu_kernels_avx512_bf16, NEEDS_AVX2 | NEEDS_AVX512 | NEEDS_AVX512_VNNI | NEEDS_AVX512_BF16},
    {&hr_cpu_kernels_avx512_amx, NEEDS_AVX2 | NEEDS_AVX512 | NEEDS_AVX512_VNNI | NEEDS_AVX512_BF16 | NEEDS_AMX},
#endif
};

enum { N_CANDIDATES = sizeof candidates / sizeof candidates[0] };

static pthread_once_t decide_once = PTHREAD_ONCE_INIT;
static unsigned features;
static uint32_t chosen;

/* What self-tests found; one runs at a time, because the guard belongs to the process. */
typedef enum proof { NOT_TRIED, IS_RIGHT, IS_WRONG } proof;
static pthread_mutex_t proof_lock = PTHREAD_MUTEX_INITIALIZER;
static proof proofs[N_CANDIDATES] = {IS_RIGHT}; /* plain */

#ifdef __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

static uint64_t read_xcr0(void)
{
    uint32_t low, high;

    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* Tiles are 8 KiB of state a thread, which Linux makes room for only where a process asks for it. */
static bool are_tiles_granted(uint64_t xcr0)
{
    enum { TILE_DATA = 18, REQUEST_PERMISSION = 0x1023 /* ARCH_REQ_XCOMP_PERM */ };
    const uint64_t tiles = 3u << 17; /* XCR0: 17 their shapes, 18 their data */

    return (xcr0 & tiles) == tiles && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

static unsigned machine_features(void)
{
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27, AVX = 1 << 28, F16C = 1 << 29 };
    enum { AVX2 = 1 << 5, AVX512F = 1 << 16, AVX512DQ = 1 << 17, AVX512BW = 1 << 30 };
    enum { AVX_VNNI = 1 << 4, AVX512_BF16 = 1 << 5, AVX512_VNNI = 1 << 11, AMX_TILE_INT8 = 3 << 24 };
    const unsigned all_leaf1 = FMA | OSXSAVE | AVX | F16C, avx512vl = 1u << 31;
    const unsigned all_avx512 = (unsigned)AVX512F | (unsigned)AVX512DQ | (unsigned)AVX512BW | avx512vl;
    const uint64_t ymm = 0x06, zmm = 0xE6; /* XCR0: 1 SSE, 2 AVX, 5 masks, 6 and 7 the upper zmm parts */
    unsigned a, b, c, d, leaf7_subleaves, found, more[4] = {0}; /* more: subleaf 1 of leaf 7 */
    uint64_t saved;

    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & all_leaf1) != all_leaf1)
        return 0;
    saved = read_xcr0();
    if ((saved & ymm) != ymm || !__get_cpuid_count(7, 0, &leaf7_subleaves, &b, &c, &d) || !(b & AVX2))
        return 0;
    if (leaf7_subleaves >= 1)
        (void)__get_cpuid_count(7, 1, &more[0], &more[1], &more[2], &more[3]);
    found = NEEDS_AVX2;
    if (more[0] & AVX_VNNI)
        found |= NEEDS_AVX_VNNI;
    if ((saved & zmm) != zmm || (b & all_avx512) != all_avx512)
        return found;
    found |= NEEDS_AVX512;
    if (c & AVX512_VNNI)
        found |= NEEDS_AVX512_VNNI;
    if (more[0] & AVX512_BF16)
        found |= NEEDS_AVX512_BF16;
    if ((d & AMX_TILE_INT8) == AMX_TILE_INT8 && are_tiles_granted(saved))
        found |= NEEDS_AMX;
    return found;
}
#else
static unsigned machine_features(void)
{
    return 0;
}
#endif

/* Proves a table if nobody has yet. After `features` are known. */
static bool is_proven(uint32_t i)
{
    bool is_right;

    if ((candidates[i].needs & ~features) != 0)
        return false;
    (void)pthread_mutex_lock(&proof_lock);
    if (proofs[i] == NOT_TRIED) {
        const char *why;

        proofs[i] = hr_cpu_self_test(candidates[i].table, &why) ? IS_RIGHT : IS_WRONG;
        if (proofs[i] == IS_WRONG)
            hr_log(HEADRACE_LOG_WARNING, "the %s kernels fail their self-test on this CPU (%s) and are not used",
                   candidates[i].table->name, why);
    }
    is_right = proofs[i] == IS_RIGHT;
    (void)pthread_mutex_unlock(&proof_lock);
    return is_right;
}

static void decide(void)
{
    const char *limit_name = getenv("HEADRACE_CPU");

    features = machine_features();
    chosen = N_CANDIDATES - 1;
    if (limit_name && *limit_name) {
        uint32_t i = 0;

        while (i < N_CANDIDATES && strcmp(candidates[i].table->name, limit_name) != 0)
            i++;
        if (i < N_CANDIDATES)
            chosen = i;
        else
            hr_log(HEADRACE_LOG_WARNING, "HEADRACE_CPU: no kernels are named \"%s\"; it is ignored", limit_name);
    }
    while (!is_proven(chosen)) /* ends at plain */
        chosen--;
}

const hr_cpu_kernels *hr_cpu_kernels_select(bool exact)
{
    (void)pthread_once(&decide_once, decide);
    return exact ? &hr_cpu_kernels_plain : candidates[chosen].table;
}

const hr_cpu_kernels *hr_cpu_kernels_at(uint32_t i, bool *usable)
{
    (void)pthread_once(&decide_once, decide);
    if (i >= N_CANDIDATES) {
        *usable = false;
        return NULL;
    }
    *usable = is_proven(i);
    return candidates[i].table;
}
