#include "kernels/joint_launch.cuh"

namespace tiercel::cuda {

void Stream::hold_for(int sequence) {
  CHECK(sequence >= 0 && sequence < kMostTogether, "sequence {}", sequence);
  CHECK(sequence == 0 ? !holding_ : holding_, "launches are held within held ones");
  if (held_ == nullptr) held_ = std::make_shared<HeldLaunches>();
  if (sequence == 0) held_->clear();
  held_->set_sequence(sequence);
  holding_ = true;
}

void Stream::stop_holding() { holding_ = launching_held_ = false; }

// Not while it runs: a launch asks first whether something is held.
void Stream::launch_held() {
  if (!holding_ || launching_held_) return;
  launching_held_ = true;
  held_->launch_all(*this);
  launching_held_ = false;
}

}  // namespace tiercel::cuda
