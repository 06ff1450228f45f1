// <immintrin.h> without the false alarms of g++ 12, whose AVX-512 intrinsics initialise their
// "undefined" operands with themselves (GCC bug 105593). clang has no such warnings.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>
