// Device memory of a test: filled from the host, read back, freed with its owner. Also seeded numbers and bf16.
#pragma once

#include "hrk.h"

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

namespace hrk_test
{

// A copy that fails would leave a test with numbers of its own: the program ends here.
inline void need(cudaError_t code, const char *what)
{
    if (code == cudaSuccess)
        return;
    (void)fprintf(stderr, "error: %s: %s\n", what, cudaGetErrorName(code));
    abort();
}

template <class T> class DeviceArray
{
  public:
    // n values; every byte 0xff at first: NaN as bf16 or fp32, an absurd index as an integer.
    explicit DeviceArray(size_t n) : n_(n)
    {
        need(cudaMalloc(reinterpret_cast<void **>(&data_), bytes()), "cudaMalloc");
        fill(0xff);
    }
    explicit DeviceArray(const std::vector<T> &values) : DeviceArray(values.size())
    {
        put(values);
    }
    ~DeviceArray()
    {
        cudaFree(data_);
    }
    DeviceArray(const DeviceArray &) = delete;
    DeviceArray &operator=(const DeviceArray &) = delete;

    void fill(int byte)
    {
        need(cudaMemset(data_, byte, bytes()), "cudaMemset");
    }
    void put(const std::vector<T> &values)
    {
        need(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "copy to the device");
    }
    std::vector<T> get() const
    {
        std::vector<T> values(n_);

        need(cudaMemcpy(values.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost), "copy from the device");
        return values;
    }
    T *data() const
    {
        return data_;
    }
    size_t size() const
    {
        return n_;
    }

  private:
    size_t bytes() const
    {
        return (n_ > 0 ? n_ : 1) * sizeof(T);
    }
    T *data_ = nullptr;
    size_t n_;
};

// splitmix64.
class Random
{
  public:
    explicit Random(uint64_t seed) : state_(seed)
    {
    }
    uint64_t next()
    {
        uint64_t z = state_ += 0x9E3779B97F4A7C15u;

        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        return z ^ z >> 31;
    }
    uint32_t below(uint32_t n)
    {
        return (uint32_t)(next() % n);
    }
    // In (0, 1).
    double unit()
    {
        return ((double)(next() >> 12) + 0.5) * 0x1p-52;
    }
    float normal()
    {
        return (float)(sqrt(-2.0 * log(unit())) * cos(6.283185307179586 * unit()));
    }

  private:
    uint64_t state_;
};

inline float bf16_value(hrk_bf16 b)
{
    const uint32_t bits = (uint32_t)b << 16;
    float f;

    memcpy(&f, &bits, sizeof f);
    return f;
}
// Nearest, ties to even.
inline hrk_bf16 bf16_bits(float f)
{
    uint32_t bits;

    memcpy(&bits, &f, sizeof bits);
    if (f != f)
        return 0x7fc0;
    return (hrk_bf16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
inline float bf16_rounded(float f)
{
    return bf16_value(bf16_bits(f));
}

} // namespace hrk_test
