// The order in which the AMX kernel goes through its work: tasks of some rows, each cut into blocks
// of slices of 32 keys. Included by attention_prefill_tiles.h only; internal linkage (cpu/isa.h).
#pragma once

#include "cpu/attention_prefill.h"

namespace tiercel::cpu::prefill {
namespace {

constexpr int kSliceKeys = 32;

// Some slices of one task.
struct Block {
  int row = -1;                      // first row of the task; -1: no block
  int task_begin = 0, task_end = 0;  // keys that any of its rows sees
  int first = 0, n_slices = 0;
  bool first_of_task = false, last_of_task = false;
};

// Walks the blocks of all tasks in order.
template <int kRows>
class Blocks {
 public:
  Blocks(const AttendRows& a, int block_slices) : a_(a), block_keys_(block_slices * kSliceKeys) {
    enter(0);
  }

  Block next() {
    if (row_ >= a_.n_rows) return {};
    Block b;
    b.row = row_;
    b.task_begin = begin_;
    b.task_end = end_;
    b.first = key_;
    const int aligned = key_ / block_keys_ * block_keys_ + block_keys_;
    const int end = aligned < end_ ? aligned : end_;
    b.n_slices = (end - key_) / kSliceKeys;
    b.first_of_task = key_ == begin_;
    b.last_of_task = end == end_;
    key_ = end;
    if (b.last_of_task) enter(row_ + kRows);
    return b;
  }

 private:
  // The first task from `row` on that sees anything, and the slices it sees.
  void enter(int row) {
    for (row_ = row; row_ < a_.n_rows; row_ += kRows) {
      begin_ = a_.n_keys;
      end_ = 0;
      for (int r = row_; r < row_ + kRows; ++r) {
        if (a_.begin[r] >= a_.end[r]) continue;
        begin_ = a_.begin[r] < begin_ ? a_.begin[r] : begin_;
        end_ = a_.end[r] > end_ ? a_.end[r] : end_;
      }
      begin_ = begin_ / kSliceKeys * kSliceKeys;
      end_ = (end_ + kSliceKeys - 1) / kSliceKeys * kSliceKeys;
      key_ = begin_;
      if (begin_ < end_) return;
    }
  }

  const AttendRows& a_;
  int block_keys_;
  int row_ = 0, begin_ = 0, end_ = 0, key_ = 0;
};

}  // namespace
}  // namespace tiercel::cpu::prefill
