// The AMX level of prefill attention, in hardware and on emulated tiles.
#include "cpu/attention_prefill_tiles.h"

namespace tiercel::cpu::prefill {
namespace {

// P of a block of 128 keys, S and, with a head dim of 64, also O stay in L1 beside K and V that
// pass through it. Smaller slices make wider ones fit better.
constexpr int kBlockKeys = 128;

template <typename Tiles, typename Exp, int kHalves, int kSliceKeys>
void attend_rows(const AttendRows& a) {
  Pipeline<Tiles, Exp, kHalves, kSliceKeys, kBlockKeys>(
      a, *static_cast<Buffers<kBlockKeys>*>(a.buffer))
      .run();
}

template <typename Tiles, typename Exp>
void attend_rows(const AttendRows& a) {
  switch (a.padded_dim / 32) {  // see padded_dim()
    case 2: return attend_rows<Tiles, Exp, 2, 64>(a);
    case 3: return attend_rows<Tiles, Exp, 3, 64>(a);
    case 4: return attend_rows<Tiles, Exp, 4, 32>(a);
    case 6: return attend_rows<Tiles, Exp, 6, 32>(a);
    case 8: return attend_rows<Tiles, Exp, 8, 32>(a);
  }
}

// The lookup here too: it is less than half the polynomial's vector work, and d 64 has none to
// spare. (The first run on AMX had it the other way round; the same lookup was twice as fast in
// the same run's dense case: neighbours. tools/JOURNAL.md, AMX)
template <typename Tiles>
void attend_rows(const AttendRows& a) {
  if (a.exact_exp) {
    attend_rows<Tiles, Polynomial>(a);
  } else {
    attend_rows<Tiles, Lookup>(a);
  }
}

}  // namespace

constinit const Kernel kAmxKernel = amx_kernel<kBlockKeys>(attend_rows<HardwareTiles>);
constinit const Kernel kAmxEmulatedKernel = amx_kernel<kBlockKeys>(attend_rows<EmulatedTiles>);

}  // namespace tiercel::cpu::prefill
