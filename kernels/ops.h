// All ops of the CUDA half of the seam.
#pragma once

#include "kernels/attention_decode.h"
#include "kernels/attention_prefill.h"
#include "kernels/clock.h"
#include "kernels/elementwise.h"
#include "kernels/gather.h"
#include "kernels/graph.h"
#include "kernels/landmark.h"
#include "kernels/linear.h"
#include "kernels/lowrank.h"
#include "kernels/movement.h"
#include "kernels/sample.h"
#include "kernels/select.h"
#include "kernels/slots.h"
#include "kernels/synthetic.h"
