// Device buffers and inputs of the planted kernels.
#pragma once

#include <math.h>
#include <string.h>
#include <vector>

#include "common/launch.h"
#include "common/numeric.h"
#include "common/prim.h"
#include "planted.h"

namespace planted
{

template <class T> class DeviceArray
{
  public:
    explicit DeviceArray(size_t n) : count(n)
    {
        cudaMalloc(reinterpret_cast<void **>(&at), n * sizeof(T));
    }
    explicit DeviceArray(const std::vector<T> &values) : DeviceArray(values.size())
    {
        cudaMemcpy(at, values.data(), count * sizeof(T), cudaMemcpyHostToDevice);
    }
    ~DeviceArray()
    {
        cudaFree(at);
    }
    DeviceArray(const DeviceArray &) = delete;
    DeviceArray &operator=(const DeviceArray &) = delete;
    T *get() const
    {
        return at;
    }
    void fill(int byte)
    {
        cudaMemset(at, byte, count * sizeof(T));
    }
    // Empty if the device is in error.
    std::vector<T> values() const
    {
        std::vector<T> v(count);
        if (cudaMemcpy(v.data(), at, count * sizeof(T), cudaMemcpyDeviceToHost) != cudaSuccess)
            v.clear();
        return v;
    }

  private:
    T *at = nullptr;
    size_t count;
};

inline float next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return static_cast<float>(*state >> 8) / 8388608.0f - 1.0f;
}

inline std::vector<hrk_bf16> random_bf16(size_t n, uint32_t seed)
{
    std::vector<hrk_bf16> v(n);

    for (hrk_bf16 &x : v)
        x = hrk::to_bf16(next_random(&seed));
    return v;
}

inline bool is_close(float got, float want, float tolerance)
{
    return fabsf(got - want) <= tolerance * (1.0f + fabsf(want)); // false for NaN
}

constexpr hrk_launch ON = {nullptr, 4, false, false};
constexpr hrk_launch ON_PROGRAMMATIC = {nullptr, 4, true, false};

// Calls run<FAULT> for the fault at hand among those listed; NONE always is.
template <template <Fault> class Launch, Fault... FAULTS, class... A> int launch_one(Fault fault, A &&...a)
{
    int error = cudaErrorInvalidValue;

    (void)((fault == FAULTS ? (error = Launch<FAULTS>::run(a...), true) : false) || ...);
    return error;
}

} // namespace planted
