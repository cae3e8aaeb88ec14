// Block barriers, warp intrinsics and atomics of CUDA C++ on the emulation; included by host.h.
#pragma once

inline void __syncthreads(SIMT_HERE)
{
    simt::bar_sync(0, 0, w);
}
inline int __syncthreads_or(int p, SIMT_HERE)
{
    return simt::bar_reduce(simt::BAR_OR, p, w);
}
inline int __syncthreads_and(int p, SIMT_HERE)
{
    return simt::bar_reduce(simt::BAR_AND, p, w);
}
inline int __syncthreads_count(int p, SIMT_HERE)
{
    return simt::bar_reduce(simt::BAR_COUNT, p, w);
}
inline void __syncwarp(uint32_t mask = 0xffffffffu, SIMT_HERE)
{
    simt::warp_collective(simt::SYNCWARP, mask, nullptr, nullptr, w);
}

template <class T> inline T __shfl_sync(uint32_t mask, T v, int source, int width = 32, SIMT_HERE)
{
    uint32_t lane = simt::lane_id(), within = static_cast<uint32_t>(width - 1);
    return simt::shuffle(mask, v, (lane & ~within) | (static_cast<uint32_t>(source) & within), w);
}
template <class T> inline T __shfl_xor_sync(uint32_t mask, T v, int bits, int width = 32, SIMT_HERE)
{
    uint32_t lane = simt::lane_id(), source = lane ^ static_cast<uint32_t>(bits),
             within = static_cast<uint32_t>(width - 1);
    return simt::shuffle(mask, v, (source & ~within) > (lane | within) ? lane : source, w);
}
template <class T> inline T __shfl_down_sync(uint32_t mask, T v, uint32_t delta, int width = 32, SIMT_HERE)
{
    uint32_t lane = simt::lane_id(), within = static_cast<uint32_t>(width - 1);
    return simt::shuffle(mask, v, (lane & within) + delta > within ? lane : lane + delta, w);
}
template <class T> inline T __shfl_up_sync(uint32_t mask, T v, uint32_t delta, int width = 32, SIMT_HERE)
{
    uint32_t lane = simt::lane_id(), within = static_cast<uint32_t>(width - 1);
    return simt::shuffle(mask, v, (lane & within) < delta ? lane : lane - delta, w);
}
inline uint32_t __ballot_sync(uint32_t mask, int p, SIMT_HERE)
{
    return simt::ballot(mask, p != 0, w);
}
inline int __any_sync(uint32_t mask, int p, SIMT_HERE)
{
    return simt::ballot(mask, p != 0, w) != 0;
}
inline int __all_sync(uint32_t mask, int p, SIMT_HERE)
{
    return simt::ballot(mask, p == 0, w) == 0;
}
inline uint32_t __activemask()
{
    return simt::active_warp_mask();
}
template <class T> inline uint32_t __match_any_sync(uint32_t mask, T v, SIMT_HERE)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "match compares 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &v, sizeof v);
    return simt::match_any(mask, bits, w);
}
inline uint32_t __reduce_add_sync(uint32_t mask, uint32_t v, SIMT_HERE)
{
    return simt::reduce(mask, v, simt::REDUCE_ADD, w);
}
inline uint32_t __reduce_min_sync(uint32_t mask, uint32_t v, SIMT_HERE)
{
    return simt::reduce(mask, v, simt::REDUCE_MIN, w);
}
inline uint32_t __reduce_max_sync(uint32_t mask, uint32_t v, SIMT_HERE)
{
    return simt::reduce(mask, v, simt::REDUCE_MAX, w);
}
inline int __reduce_add_sync(uint32_t mask, int v, SIMT_HERE)
{
    return static_cast<int>(simt::reduce(mask, static_cast<uint32_t>(v), simt::REDUCE_ADD, w));
}
inline int __reduce_min_sync(uint32_t mask, int v, SIMT_HERE)
{
    return static_cast<int>(simt::reduce(mask, static_cast<uint32_t>(v), simt::REDUCE_MIN_S, w));
}
inline int __reduce_max_sync(uint32_t mask, int v, SIMT_HERE)
{
    return static_cast<int>(simt::reduce(mask, static_cast<uint32_t>(v), simt::REDUCE_MAX_S, w));
}
inline uint32_t __reduce_and_sync(uint32_t mask, uint32_t v, SIMT_HERE)
{
    return simt::reduce(mask, v, simt::REDUCE_AND, w);
}
inline uint32_t __reduce_or_sync(uint32_t mask, uint32_t v, SIMT_HERE)
{
    return simt::reduce(mask, v, simt::REDUCE_OR, w);
}
inline uint32_t __reduce_xor_sync(uint32_t mask, uint32_t v, SIMT_HERE)
{
    return simt::reduce(mask, v, simt::REDUCE_XOR, w);
}

inline void __threadfence()
{
    simt::thread_fence();
}
inline void __threadfence_block()
{
    simt::thread_fence();
}
inline void __threadfence_system()
{
    simt::thread_fence();
}
inline void __nanosleep(unsigned)
{
    simt::yield();
}
inline void __trap(SIMT_HERE)
{
    simt::trap("__trap()", w);
}
inline long long clock64()
{
    return static_cast<long long>(simt::clock_ns());
}

// Atomics: blocks really run on several OS threads.
template <class T> inline T simt_atomic_update(T *p, T (*next)(T, T), T v)
{
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(p, &old, next(old, v), true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
template <class T>
using simt_integer = std::enable_if_t<std::is_integral<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), T>;
template <class T> struct simt_same {
    using type = T;
};
template <class T> using simt_value = typename simt_same<T>::type; // a literal converts to the pointer's type
template <class T> inline simt_integer<T> atomicAdd(T *p, simt_value<T> v)
{
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
template <class T> inline simt_integer<T> atomicSub(T *p, simt_value<T> v)
{
    return __atomic_fetch_sub(p, v, __ATOMIC_RELAXED);
}
template <class T> inline simt_integer<T> atomicOr(T *p, simt_value<T> v)
{
    return __atomic_fetch_or(p, v, __ATOMIC_RELAXED);
}
template <class T> inline simt_integer<T> atomicAnd(T *p, simt_value<T> v)
{
    return __atomic_fetch_and(p, v, __ATOMIC_RELAXED);
}
template <class T> inline simt_integer<T> atomicXor(T *p, simt_value<T> v)
{
    return __atomic_fetch_xor(p, v, __ATOMIC_RELAXED);
}
template <class T> inline simt_integer<T> atomicMax(T *p, simt_value<T> v)
{
    return simt_atomic_update<T>(
        p, [](T a, T b) { return a < b ? b : a; }, v);
}
template <class T> inline simt_integer<T> atomicMin(T *p, simt_value<T> v)
{
    return simt_atomic_update<T>(
        p, [](T a, T b) { return b < a ? b : a; }, v);
}
template <class T> inline simt_integer<T> atomicExch(T *p, simt_value<T> v)
{
    return __atomic_exchange_n(p, v, __ATOMIC_RELAXED);
}
template <class T> inline simt_integer<T> atomicCAS(T *p, simt_value<T> expected, simt_value<T> v)
{
    __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
// Counts 0 .. limit and wraps.
inline unsigned atomicInc(unsigned *p, unsigned limit)
{
    unsigned old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (
        !__atomic_compare_exchange_n(p, &old, old >= limit ? 0 : old + 1, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
