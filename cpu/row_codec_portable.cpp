#include "cpu/row_codec.h"

namespace tiercel::cpu {

const RowCodecKernel kRowCodecPortable = {encode_any, encode_any_f32, decode_any, decode_any_f32};

}  // namespace tiercel::cpu
