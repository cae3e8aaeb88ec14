// Routing of a step by a plain loop: which rows go to which expert, as hrk_route lists them.
#pragma once

#include "kernels/support/device_array.h"

#include <vector>

namespace hrk_test
{

struct ExpertLists {
    uint32_t E, K;
    std::vector<uint32_t> first, sorted; // as in hrk_routing
    std::vector<uint32_t> expert;        // of each position in sorted

    // chosen: [T, K] distinct experts of each row.
    ExpertLists(uint32_t E_, uint32_t K_, const std::vector<uint32_t> &chosen) : E(E_), K(K_)
    {
        for (uint32_t e = 0; e < E; e++) {
            first.push_back((uint32_t)sorted.size());
            for (uint32_t i = 0; i < chosen.size(); i++) {
                if (chosen[i] == e) {
                    sorted.push_back(i);
                    expert.push_back(e);
                }
            }
        }
        first.push_back((uint32_t)sorted.size());
    }
};

// K distinct experts for each of n rows; row i's depend on ids[i] alone. hot: every row's first choice; -1: none.
inline std::vector<uint32_t> choose_experts(const std::vector<uint32_t> &ids, uint32_t E, uint32_t K, int hot)
{
    std::vector<uint32_t> chosen;

    for (uint32_t id : ids) {
        Random random(id + 17u);
        std::vector<uint32_t> mine;

        if (hot >= 0)
            mine.push_back((uint32_t)hot);
        while (mine.size() < K) {
            const uint32_t e = random.below(E);
            bool is_new = true;

            for (uint32_t other : mine)
                is_new = is_new && other != e;
            if (is_new)
                mine.push_back(e);
        }
        chosen.insert(chosen.end(), mine.begin(), mine.end());
    }
    return chosen;
}

} // namespace hrk_test
