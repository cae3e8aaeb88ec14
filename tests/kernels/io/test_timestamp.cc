// hrk_timestamp: writes its own entry and no other, and time does not go backwards in a stream.
#include "kernels/support/expect.h"

using namespace hrk_test;

namespace
{

void stamps_ascend_in_the_order_of_the_stream(void **)
{
    DeviceArray<uint64_t> stamps(4);
    const hrk_launch on = {nullptr, 2, true, false};

    for (uint32_t i : {2u, 0u, 3u})
        assert_int_equal(hrk_timestamp(stamps.data(), i, &on), 0);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    const std::vector<uint64_t> got = stamps.get();
    assert_true(got[1] == UINT64_MAX);
    assert_true(got[2] <= got[0] && got[0] <= got[3] && got[3] < UINT64_MAX);
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {cmocka_unit_test(stamps_ascend_in_the_order_of_the_stream)};

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
