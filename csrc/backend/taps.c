/* Names of the taps: one table, in the order of the enum, so that a report and a golden file speak of the same value.
 */
#include "backend/taps.h"

static const char *const names[HR_TAP_COUNT] = {
    [HR_TAP_EMBED] = "embed",
    [HR_TAP_OPERATOR_NORM] = "operator_norm",
    [HR_TAP_CONV_BX] = "conv_bx",
    [HR_TAP_CONV_Y] = "conv_y",
    [HR_TAP_Q] = "q",
    [HR_TAP_K] = "k",
    [HR_TAP_V] = "v",
    [HR_TAP_ATTENTION] = "attention",
    [HR_TAP_OPERATOR_OUT] = "operator_out",
    [HR_TAP_FFN_NORM] = "ffn_norm",
    [HR_TAP_ROUTER_LOGITS] = "router_logits",
    [HR_TAP_ROUTER_IDS] = "router_ids",
    [HR_TAP_ROUTER_WEIGHTS] = "router_weights",
    [HR_TAP_FFN_ACT] = "ffn_act",
    [HR_TAP_FFN_OUT] = "ffn_out",
    [HR_TAP_LAYER_OUT] = "layer_out",
    [HR_TAP_FINAL_NORM] = "final_norm",
    [HR_TAP_LOGITS] = "logits",
};

const char *hr_tap_name(hr_tap tap)
{
    return (unsigned)tap < HR_TAP_COUNT ? names[tap] : "unknown";
}
