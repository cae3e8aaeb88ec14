// An upload block (hrk_step and what its offsets name), put together for a test.
#pragma once

#include "hrk.h"

#include <stdint.h>
#include <string.h>
#include <vector>

namespace hrk_test
{

class StepBlock
{
  public:
    hrk_step step = {};

    // Appends an array; returns where it begins.
    template <class T> uint32_t add(const std::vector<T> &values)
    {
        bytes_.resize((bytes_.size() + 15) / 16 * 16);
        const size_t at = bytes_.size();

        bytes_.resize(at + values.size() * sizeof(T));
        if (!values.empty())
            memcpy(bytes_.data() + at, values.data(), values.size() * sizeof(T));
        return (uint32_t)at;
    }
    void set_spans(const std::vector<hrk_span> &spans)
    {
        step.n_spans = (uint32_t)spans.size();
        step.n_rows = spans.empty() ? 0 : spans.back().first_row + spans.back().n_rows;
        step.spans_at = add(spans);
    }
    void set_outputs(const std::vector<hrk_output> &outputs)
    {
        step.n_outputs = (uint32_t)outputs.size();
        step.outputs_at = add(outputs);
    }
    std::vector<unsigned char> bytes() const
    {
        std::vector<unsigned char> all = bytes_;

        memcpy(all.data(), &step, sizeof step);
        return all;
    }

  private:
    std::vector<unsigned char> bytes_ = std::vector<unsigned char>(sizeof(hrk_step));
};

// row_position and row_span of hrk_tables, as hrk_step_begin would leave them.
struct RowTables {
    std::vector<uint32_t> position, span;

    explicit RowTables(const std::vector<hrk_span> &spans)
    {
        for (uint32_t s = 0; s < spans.size(); s++) {
            for (uint32_t i = 0; i < spans[s].n_rows; i++) {
                position.push_back(spans[s].start_position + i);
                span.push_back(s);
            }
        }
    }
};

} // namespace hrk_test
