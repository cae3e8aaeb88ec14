// Loads with cache hints, bit operations and device math of CUDA C++; included by host.h.
//
// Approximate functions (__expf, rsqrtf ...) are computed exactly here: tests of kernels that use them need tolerances.
#pragma once

template <class T> inline T __ldg(const T *p)
{
    return *p;
}
template <class T> inline T __ldcs(const T *p)
{
    return *p;
}
template <class T> inline T __ldcg(const T *p)
{
    return *p;
}
template <class T> inline T __ldcv(const T *p)
{
    return *const_cast<const volatile T *>(p);
}
template <class T> inline void __stcs(T *p, T v)
{
    *p = v;
}
template <class T> inline void __stcg(T *p, T v)
{
    *p = v;
}

inline int __popc(uint32_t x)
{
    return __builtin_popcount(x);
}
inline int __popcll(uint64_t x)
{
    return __builtin_popcountll(x);
}
inline int __ffs(int x)
{
    return __builtin_ffs(x);
}
inline int __ffsll(long long x)
{
    return __builtin_ffsll(x);
}
inline int __clz(int x)
{
    return x ? __builtin_clz(static_cast<uint32_t>(x)) : 32;
}
inline int __clzll(long long x)
{
    return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}
inline uint32_t __brev(uint32_t x)
{
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(x);
}
inline uint32_t __umulhi(uint32_t a, uint32_t b)
{
    return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    __extension__ typedef unsigned __int128 wide;
    return static_cast<unsigned long long>(static_cast<wide>(a) * b >> 64);
}
inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t shift)
{
    return static_cast<uint32_t>(((static_cast<uint64_t>(high) << 32 | low) << (shift & 31)) >> 32);
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift)
{
    return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector)
{
    uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
    uint32_t r = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t s = selector >> 4 * i & 0xf, byte = static_cast<uint32_t>(bytes >> 8 * (s & 7)) & 0xff;
        r |= (s & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << 8 * i;
    }
    return r;
}

template <class To, class From> inline To simt_bits(From from)
{
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline uint32_t __float_as_uint(float f)
{
    return simt_bits<uint32_t>(f);
}
inline float __uint_as_float(uint32_t u)
{
    return simt_bits<float>(u);
}
inline int __float_as_int(float f)
{
    return simt_bits<int>(f);
}
inline float __int_as_float(int i)
{
    return simt_bits<float>(i);
}
inline long long __double_as_longlong(double d)
{
    return simt_bits<long long>(d);
}
inline double __longlong_as_double(long long i)
{
    return simt_bits<double>(i);
}
inline int __float2int_rn(float f)
{
    return static_cast<int>(nearbyintf(f));
}
inline int __float2int_rz(float f)
{
    return static_cast<int>(f);
}
inline int __float2int_rd(float f)
{
    return static_cast<int>(floorf(f));
}
inline unsigned __float2uint_rn(float f)
{
    return static_cast<unsigned>(nearbyintf(f));
}
inline unsigned __float2uint_rz(float f)
{
    return static_cast<unsigned>(f);
}
inline float __int2float_rn(int i)
{
    return static_cast<float>(i);
}
inline float __uint2float_rn(unsigned i)
{
    return static_cast<float>(i);
}
inline float __ull2float_rn(unsigned long long i)
{
    return static_cast<float>(i);
}

inline float rsqrtf(float x)
{
    return 1.0f / sqrtf(x);
}
inline double rsqrt(double x)
{
    return 1.0 / sqrt(x);
}
inline float __frsqrt_rn(float x)
{
    return static_cast<float>(1.0 / sqrt(static_cast<double>(x)));
}
inline float __expf(float x)
{
    return expf(x);
}
inline float __exp10f(float x)
{
    return powf(10.0f, x);
}
inline float __logf(float x)
{
    return logf(x);
}
inline float __log2f(float x)
{
    return log2f(x);
}
inline float __powf(float x, float y)
{
    return powf(x, y);
}
inline float __sinf(float x)
{
    return sinf(x);
}
inline float __cosf(float x)
{
    return cosf(x);
}
inline float __fdividef(float a, float b)
{
    return a / b;
}
inline float __frcp_rn(float a)
{
    return 1.0f / a;
}
inline float __fsqrt_rn(float a)
{
    return sqrtf(a);
}
inline float __fadd_rn(float a, float b)
{
    return a + b;
}
inline float __fsub_rn(float a, float b)
{
    return a - b;
}
inline float __fmul_rn(float a, float b)
{
    return a * b;
}
inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
inline double __dadd_rn(double a, double b)
{
    return a + b;
}
inline double __dmul_rn(double a, double b)
{
    return a * b;
}
inline float __saturatef(float x)
{
    return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f;
}

// min and max as nvcc overloads them; a NaN loses to a number.
#define SIMT_MIN_MAX(T)       \
    inline T min(T a, T b)    \
    {                         \
        return a < b ? a : b; \
    }                         \
    inline T max(T a, T b)    \
    {                         \
        return a > b ? a : b; \
    }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
#undef SIMT_MIN_MAX
inline float min(float a, float b)
{
    return fminf(a, b);
}
inline float max(float a, float b)
{
    return fmaxf(a, b);
}
inline double min(double a, double b)
{
    return fmin(a, b);
}
inline double max(double a, double b)
{
    return fmax(a, b);
}
// Mixed signedness, as nvcc: the unsigned one wins.
inline unsigned min(int a, unsigned b)
{
    return min(static_cast<unsigned>(a), b);
}
inline unsigned min(unsigned a, int b)
{
    return min(a, static_cast<unsigned>(b));
}
inline unsigned max(int a, unsigned b)
{
    return max(static_cast<unsigned>(a), b);
}
inline unsigned max(unsigned a, int b)
{
    return max(a, static_cast<unsigned>(b));
}
