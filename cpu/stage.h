// Staging: rows of K and V, gathered from anywhere, into the tile order that attention reads.
//
// Attention only ever sees staged keys; K and V stay row-major everywhere else. With d the padded
// head dim, one tile of 1 KiB holds
//
//   K  [n/16 groups][d/32]: tile [16 d-pairs][16 keys][2]       dword (k, c) = K[key c][2k, 2k+1]
//   V  [n/32 slices][d/16]: tile [16 rows][16 columns][2]
//        row i of a V tile is the key pair that the weights' dword i holds after packusdw:
//          pair of row i   0 1 8 9 2 3 10 11 4 5 12 13 6 7 14 15
//        tiles 2h, 2h+1 hold d 32h .. 32h+31; column j of tile 2h+u is d = 32h + 8(j/4) + 4u + j%4
//        (what the in-lane unpack of two rows yields; put right again when O is written out)
//
// These are the B operands of tdpbf16ps, and suit vdpbf16ps with broadcast q and p as well.
#pragma once

#include "cpu/attention_prefill.h"

namespace tiercel::cpu::prefill {

void stage_tiles(const StageRows& stage);  // needs AVX-512 F, BW
void pack_tiles(const PackRows& pack);     // q scaled in fp32 to units of 1/128 octave, then bf16
void store_tiles(const StoreRows& store);

}  // namespace tiercel::cpu::prefill
