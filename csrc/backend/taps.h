/* Taps: named intermediate values, so that where two paths part can be named by a tool.
 *
 * A backend emits the values it truly has; a fused stage stays silent about those it never materialises. Values are
 * fp32, [rows, cols], rows in the order of the batch. Goldens are the same taps recorded from transformers. With no tap
 * function set, a tap costs one NULL check per stage.
 */
#ifndef HR_BACKEND_TAPS_H
#define HR_BACKEND_TAPS_H

#include <stdint.h>

typedef enum hr_tap {
    HR_TAP_EMBED,          /* [T, H]      residual stream after the embedding; layer 0 */
    HR_TAP_OPERATOR_NORM,  /* [T, H]      */
    HR_TAP_CONV_BX,        /* [T, H]      B * x, what the convolution state holds */
    HR_TAP_CONV_Y,         /* [T, H]      C * conv(B x) */
    HR_TAP_Q,              /* [T, Nq D]   after norm and RoPE */
    HR_TAP_K,              /* [T, Nkv D]  after norm and RoPE */
    HR_TAP_V,              /* [T, Nkv D]  */
    HR_TAP_ATTENTION,      /* [T, Nq D]   before the output projection */
    HR_TAP_OPERATOR_OUT,   /* [T, H]      what the operator adds to the residual stream */
    HR_TAP_FFN_NORM,       /* [T, H]      */
    HR_TAP_ROUTER_LOGITS,  /* [T, E]      */
    HR_TAP_ROUTER_IDS,     /* [T, K]      as floats, best first by sigmoid + bias */
    HR_TAP_ROUTER_WEIGHTS, /* [T, K]      in the order of the ids */
    HR_TAP_FFN_ACT,        /* [T, F]      silu(gate) * up, before the down projection; experts: [T, K M], of each row
                                          its K experts', the lowest id first */
    HR_TAP_FFN_OUT,        /* [T, H]      what the feed-forward adds */
    HR_TAP_LAYER_OUT,      /* [T, H]      residual stream after the layer */
    HR_TAP_FINAL_NORM,     /* [T or outputs, H] */
    HR_TAP_LOGITS,         /* [outputs, V] */
    HR_TAP_COUNT
} hr_tap;

/* Called from the thread that runs the step; data is valid during the call only. */
typedef void (*hr_tap_fn)(void *user, hr_tap tap, uint32_t layer, const float *data, uint32_t rows, uint32_t cols);

/* "conv_bx" and so on; names used by goldens and reports. */
const char *hr_tap_name(hr_tap tap);

#endif
