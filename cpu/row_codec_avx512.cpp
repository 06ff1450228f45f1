#if defined(__x86_64__)
#include "cpu/row_codec.h"

namespace tiercel::cpu {

const RowCodecKernel kRowCodecAvx512 = {encode_any, encode_any_f32, decode_any, decode_any_f32};

}  // namespace tiercel::cpu
#endif
