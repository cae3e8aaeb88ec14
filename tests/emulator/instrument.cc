// The functions that -fsanitize=thread makes the compiler call. The sanitizer's own runtime is not linked: it knows
// nothing of fibers and shared memory. Kernels of the checked build come here with every access that is not to a plain
// local.
#include "check.h"

#include <string.h>

#define PC __builtin_return_address(0)
#define UNNAMED       \
    simt::Loc         \
    {                 \
        "(kernel)", 0 \
    }

#define SIMT_ACCESS(prefix, bytes)                              \
    void __tsan_##prefix##read##bytes(void *p)                  \
    {                                                           \
        simt::check_access(p, bytes, simt::READ, UNNAMED, PC);  \
    }                                                           \
    void __tsan_##prefix##write##bytes(void *p)                 \
    {                                                           \
        simt::check_access(p, bytes, simt::WRITE, UNNAMED, PC); \
    }

// Memory order is the host's; only who touches what is checked. (A store may come first, a read-modify-write may not.)
#define SIMT_ATOMIC_UPDATE(bits, T, name)                                             \
    T __tsan_atomic##bits##_##name(volatile T *p, T v, int)                           \
    {                                                                                 \
        simt::check_access(const_cast<T *>(p), sizeof(T), simt::ATOMIC, UNNAMED, PC); \
        return __atomic_##name(p, v, __ATOMIC_SEQ_CST);                               \
    }
#define SIMT_ATOMIC_EXCHANGE(bits, T, name, weak)                                                     \
    int __tsan_atomic##bits##_compare_exchange_##name(volatile T *p, T *expected, T v, int, int)      \
    {                                                                                                 \
        simt::check_access(const_cast<T *>(p), sizeof(T), simt::ATOMIC, UNNAMED, PC);                 \
        return __atomic_compare_exchange_n(p, expected, v, weak, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
    }
#define SIMT_ATOMIC(bits, T)                                                                     \
    T __tsan_atomic##bits##_load(const volatile T *p, int)                                       \
    {                                                                                            \
        simt::check_access(const_cast<const T *>(p), sizeof(T), simt::ATOMIC, UNNAMED, PC);      \
        return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                             \
    }                                                                                            \
    void __tsan_atomic##bits##_store(volatile T *p, T v, int)                                    \
    {                                                                                            \
        simt::check_access(const_cast<T *>(p), sizeof(T), simt::WRITE, UNNAMED, PC);             \
        __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                \
    }                                                                                            \
    T __tsan_atomic##bits##_exchange(volatile T *p, T v, int)                                    \
    {                                                                                            \
        simt::check_access(const_cast<T *>(p), sizeof(T), simt::ATOMIC, UNNAMED, PC);            \
        return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                      \
    }                                                                                            \
    T __tsan_atomic##bits##_compare_exchange_val(volatile T *p, T expected, T v, int, int)       \
    {                                                                                            \
        simt::check_access(const_cast<T *>(p), sizeof(T), simt::ATOMIC, UNNAMED, PC);            \
        __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
        return expected;                                                                         \
    }                                                                                            \
    SIMT_ATOMIC_UPDATE(bits, T, fetch_add)                                                       \
    SIMT_ATOMIC_UPDATE(bits, T, fetch_sub)                                                       \
    SIMT_ATOMIC_UPDATE(bits, T, fetch_or)                                                        \
    SIMT_ATOMIC_UPDATE(bits, T, fetch_and)                                                       \
    SIMT_ATOMIC_UPDATE(bits, T, fetch_xor)                                                       \
    SIMT_ATOMIC_EXCHANGE(bits, T, strong, false)                                                 \
    SIMT_ATOMIC_EXCHANGE(bits, T, weak, true)

extern "C" {
// Each instrumented object calls it before main.
void __tsan_init()
{
    simt::has_instrumented = true;
}
void __tsan_func_entry(void *)
{
}
void __tsan_func_exit()
{
}
void __tsan_vptr_update(void **, void *)
{
}
void __tsan_vptr_read(void **)
{
}
SIMT_ACCESS(, 1)
SIMT_ACCESS(, 2)
SIMT_ACCESS(, 4)
SIMT_ACCESS(, 8)
SIMT_ACCESS(, 16)
SIMT_ACCESS(unaligned_, 2)
SIMT_ACCESS(unaligned_, 4)
SIMT_ACCESS(unaligned_, 8)
SIMT_ACCESS(unaligned_, 16)
void __tsan_read_range(void *p, size_t n)
{
    simt::check_access(p, n, simt::READ, UNNAMED, PC);
}
void __tsan_write_range(void *p, size_t n)
{
    simt::check_access(p, n, simt::WRITE, UNNAMED, PC);
}
SIMT_ATOMIC(8, uint8_t)
SIMT_ATOMIC(16, uint16_t)
SIMT_ATOMIC(32, uint32_t)
SIMT_ATOMIC(64, uint64_t)
void __tsan_atomic_thread_fence(int)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

// memcpy, memmove and memset of instrumented objects are renamed to these (compile_checked.sh).
void *simt_checked_memcpy(void *to, const void *from, size_t n)
{
    simt::check_access(from, n, simt::READ, UNNAMED, PC);
    simt::check_access(to, n, simt::WRITE, UNNAMED, PC);
    return memcpy(to, from, n);
}
void *simt_checked_memmove(void *to, const void *from, size_t n)
{
    simt::check_access(from, n, simt::READ, UNNAMED, PC);
    simt::check_access(to, n, simt::WRITE, UNNAMED, PC);
    return memmove(to, from, n);
}
void *simt_checked_memset(void *to, int value, size_t n)
{
    simt::check_access(to, n, simt::WRITE, UNNAMED, PC);
    return memset(to, value, n);
}
}
