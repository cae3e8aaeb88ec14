// Launching a kernel from plain C++: `<<<>>>` is not C++, and every launch here may be programmatic.
#pragma once

#include "common/cuda_compat.h"
#include "hrk.h"

namespace hrk
{

struct LaunchShape {
    dim3 grid, block;
    size_t smem = 0;
    unsigned cluster = 1; // blocks along x
};

template <class... P, class... A>
inline int launch(void (*kernel)(P...), const LaunchShape &shape, const hrk_launch *on, A &&...args)
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attributes[2];

    config.gridDim = shape.grid;
    config.blockDim = shape.block;
    config.dynamicSmemBytes = shape.smem;
    config.stream = on->stream;
    config.attrs = attributes;
    if (shape.cluster > 1) {
        attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
        attributes[config.numAttrs].val.clusterDim.x = shape.cluster;
        attributes[config.numAttrs].val.clusterDim.y = 1;
        attributes[config.numAttrs].val.clusterDim.z = 1;
        config.numAttrs++;
    }
    if (on->programmatic) {
        attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[config.numAttrs].val.programmaticStreamSerializationAllowed = 1;
        config.numAttrs++;
    }
    if (shape.smem > 48 * 1024) {
        cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shape.smem);
        if (e != cudaSuccess)
            return (int)e;
    }
    if (on->only_load) { // asking for its attributes loads it
        cudaFuncAttributes ignored;
        return (int)cudaFuncGetAttributes(&ignored, reinterpret_cast<const void *>(kernel));
    }
    return (int)cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
}

} // namespace hrk
