// Small kernels with faults planted in them, for the test of what the emulation notices (test_planted.cc).
//
// Each kernel is a template on the fault, NONE being the sound one; faults are single and of the kind that slips
// through review. A line that a report should name is marked "reported: NAME".
#pragma once

#include <cuda_runtime.h>

namespace planted
{

enum Fault {
    NONE,
    // pipeline.cu: copies, mbarriers, wgmma, named barriers, bulk stores
    WRONG_SWIZZLE,
    WRONG_FULL_PARITY,
    WRONG_EMPTY_PARITY,
    NO_FULL_WAIT,
    NO_EMPTY_WAIT,
    EARLY_RELEASE,
    RELEASE_OF_ONE_WARP,
    SHORT_BYTES,
    LONG_BYTES,
    DESCRIPTOR_STEP,
    UNMASKED_TAIL,
    NO_PROXY_FENCE,
    NO_WGMMA_FENCE,
    NO_WGMMA_WAIT,
    EARLY_OVERWRITE,
    NO_ACCUMULATOR_RESET,
    NO_COPY_ARRIVAL,
    NO_STORE_BARRIER,
    NO_STORE_FENCE,
    NO_STORE_READ_WAIT,
    STORE_NOT_COMMITTED,
    EXIT_WITH_STORE,
    BARRIER_COUNT,
    OVER_ARRIVAL,
    EMPTY_COUNT,
    NO_INIT_BARRIER,
    EXIT_WITH_LOAD,
    // window.cu: a cp.async pipeline with block barriers, ldmatrix and mma.sync
    NO_CP_ASYNC_WAIT,
    NO_BARRIER_AFTER_WAIT,
    NO_BARRIER_BEFORE_REFILL,
    UNMASKED_COPY,
    MASK_OFF_BY_ONE,
    NO_TRANSPOSITION,
    SHARED_OUT_OF_BOUNDS,
    SHARED_UNINITIALISED,
    GLOBAL_OUT_OF_BOUNDS,
    // cluster.cu: distributed shared memory
    NO_CLUSTER_BARRIER,
    WRONG_PEER,
    EXIT_BEFORE_PEER,
    // reduce.cu: a warp reduction, static shared memory
    NO_SYNCTHREADS,
    NO_SYNCWARP,
    LANE_MISSING,
    MASK_MISSES_LANE,
    SHORT_BUTTERFLY,
    BARRIER_IN_BRANCH,
    // split.cu: partial softmax sums, merged by the last block
    NO_RESCALE,
    KEY_MASK_OFF_BY_ONE,
    COUNTER_NOT_RESET,
    FLAG_WITHOUT_BARRIER,
    WRONG_COUNT,
    // chain.cu: programmatic launches, life of device memory
    NO_GRIDDEP_WAIT,
    READ_BEFORE_WAIT,
    WRITE_BEFORE_WAIT,
    USE_AFTER_FREE,
    N_FAULTS
};

// Each prepares inputs, launches the kernel with the fault, and returns whether launch and results are as they should
// be.
bool run_pipeline(Fault fault);
bool run_window(Fault fault);
bool run_cluster(Fault fault);
bool run_reduce(Fault fault);
bool run_split(Fault fault);
bool run_chain(Fault fault);

} // namespace planted
