// Coefficients of 2^f on [-1/2, 1/2]: a minimax polynomial of degree 6 with the constant term fixed
// at 1, so that 2^0 is exactly 1. Relative error of the polynomial 2.6e-9; evaluated in fp32 the
// result is within 2 ulp. Macros, because files of every ISA level read them.
#pragma once

#define TIERCEL_EXP2_C1 0.6931472149680288f
#define TIERCEL_EXP2_C2 0.24022652782888126f
#define TIERCEL_EXP2_C3 0.055503105510121845f
#define TIERCEL_EXP2_C4 0.009617692972930608f
#define TIERCEL_EXP2_C5 0.0013406643902918514f
#define TIERCEL_EXP2_C6 0.00015594678181249006f
