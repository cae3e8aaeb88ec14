/* 16-bit floating point and back. Plain C so that every path, the oracle included, reads a weight as the same number.
 */
#ifndef HR_BASE_NUMERIC_H
#define HR_BASE_NUMERIC_H

#include <stdint.h>
#include <string.h>

static inline float hr_bits_to_f32(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t hr_f32_to_bits(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float hr_bf16_to_f32(uint16_t h)
{
    return hr_bits_to_f32((uint32_t)h << 16);
}

/* Round to nearest, ties to even; NaN stays a quiet NaN. */
static inline uint16_t hr_f32_to_bf16(float value)
{
    uint32_t bits = hr_f32_to_bits(value);

    if ((bits & 0x7FFFFFFFu) > 0x7F800000u)
        return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

/* Exact, subnormals, infinities and NaN included. */
static inline float hr_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 0x1Fu, mantissa = h & 0x3FFu;

    if (exponent == 0x1F)
        return hr_bits_to_f32(sign | 0x7F800000u | mantissa << 13);
    if (exponent == 0) { /* mantissa x 2^-24, exact in fp32 */
        float magnitude = (float)mantissa * 0x1p-24f;

        return sign ? -magnitude : magnitude;
    }
    return hr_bits_to_f32(sign | (exponent + 112u) << 23 | mantissa << 13);
}

/* Round to nearest, ties to even; overflow becomes infinity. */
static inline uint16_t hr_f32_to_f16(float value)
{
    uint32_t bits = hr_f32_to_bits(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;

    if (magnitude > 0x7F800000u)
        return (uint16_t)(sign | 0x7E00u);
    if (magnitude >= 0x47800000u) /* 65536 and above */
        return (uint16_t)(sign | 0x7C00u);
    if (magnitude < 0x38800000u) {                        /* below 2^-14: subnormal, in units of 2^-24 */
        float shifted = hr_bits_to_f32(magnitude) + 0.5f; /* the addition rounds at 2^-24: 0.5 has ulp 2^-24 */
        uint32_t units = hr_f32_to_bits(shifted) - 0x3F000000u;

        return (uint16_t)(sign | units);
    }
    magnitude += 0xFFFu + (magnitude >> 13 & 1u);
    return (uint16_t)(sign | (magnitude - 0x38000000u) >> 13);
}

#endif
