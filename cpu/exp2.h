// The two exp2 of the CPU kernels, as constants; every ISA level spells out the instructions.
//
// Safe in ISA-suffixed files: constants of internal linkage only.
//
// 1. fp32 polynomial. 2^x = 2^n P(x - n), n = x rounded to nearest, |x - n| <= 0.5. Relative error
//    of P 7.5e-8 (minimax), about 2e-7 with its fp32 rounding.
//
// 2. 16-bit lookup. Scores come in units of 1/128 octave, t = 128 log2(weight), rounded to integers
//    (that is all that a bf16 weight can hold). With t = 128 e + f, 0 <= f < 128, the word
//    ((e + 127) << 7) + f, read as bf16, is 2^e (1 + f/128): right at f = 0, too large between. The
//    table holds by how much, averaged over two neighbours f = 2i, 2i + 1:
//      table[i] = round(f - 128 (2^(f/128) - 1)),   word - table[f / 2] is the weight.
//    Over 100 octaves: relative error at most 0.72 %, rms 0.233 %, mean -0.028 %; the mean cancels
//    when the sum is taken over the same rounded weights. Rounding an exact exp2 to bf16 costs
//    0.39 %, rms 0.166 %, so this adds 40 % to noise that is there anyway.
#pragma once

#include <cstdint>

namespace tiercel::cpu {

// P(f) = sum of kExp2C[i] f^i.
static constexpr float kExp2C[6] = {1.00000007f,   0.693146967f,   0.240221197f,
                                    0.0555071327f, 0.00967554133f, 0.00132764722f};

// Below this 2^x is 0 for every purpose here; clamping there keeps the exponent arithmetic in
// range.
static constexpr float kExp2Min = -126.0f;

// Adding 1.5 * 2^23 to |x| < 2^22 rounds x to an integer, which then sits in the low mantissa bits.
static constexpr float kRoundMagic = 12582912.0f;
static constexpr int32_t kRoundMagicBits = 0x4B400000;

static constexpr float kUnitsPerOctave = 128.0f;

// bits(score - reference + kRoundMagic) - kLookupBias = the word before its correction.
static constexpr int32_t kLookupBias = kRoundMagicBits - 127 * 128;

alignas(64) static constexpr uint8_t kLookupTable[64] = {
    0,  1,  1,  2,  2,  3,  4,  4,  5,  5,  5,  6,  6,  7,  7,  8,  8,  8,  9,  9,  9,  9,
    10, 10, 10, 10, 10, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 10, 10, 10,
    10, 10, 9,  9,  9,  8,  8,  8,  7,  7,  6,  6,  5,  5,  4,  3,  3,  2,  1,  1};

}  // namespace tiercel::cpu
