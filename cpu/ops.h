// All ops of the CPU half of the seam.
#pragma once

#include "cpu/attention_decode.h"
#include "cpu/attention_prefill.h"
#include "cpu/codec.h"
#include "cpu/elementwise.h"
#include "cpu/gather.h"
#include "cpu/key_bias.h"
#include "cpu/landmark.h"
#include "cpu/linear.h"
#include "cpu/lowrank.h"
#include "cpu/mass.h"
#include "cpu/movement.h"
#include "cpu/pick.h"
#include "cpu/reuse.h"
#include "cpu/select.h"
#include "cpu/slots.h"
#include "cpu/synthetic.h"
