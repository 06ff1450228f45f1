// Which requests of a file begin with the same tokens, so that these are prefilled once.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tools/batch/requests.h"

namespace tiercel {

// Fewer tokens are not worth a sequence of their own.
inline constexpr int64_t kLeastShared = 256;

// Of a prompt of n tokens, what stays behind a prefix of its own: a question may be in it, and it attends what it
// selects of the rest.
int64_t tokens_at_the_end(int64_t n);
SharedPrefix all_but_its_end(std::span<const int32_t> prompt);

// Requests that follow each other share what all of them begin with, where that is as much as half of
// each of them; several answers to one, all but its end. What a request shares depends on its neighbours in the file only,
// answered or not.
class PrefixFinder {
 public:
  // share: requests get their prefixes; else it is only counted what they could share.
  PrefixFinder(std::vector<BatchRequest>& requests, bool share)
      : requests_(requests), share_(share) {}

  // Looks at the newest request. Its prompt keeps only what others do not share, so that a file of
  // questions on one long text takes little more than one of them.
  void add_last();
  // Every prompt is whole again, or what is behind its prefix.
  void finish();

  // Tokens that need not be prefilled because others are.
  int64_t n_saved() const { return n_saved_; }

 private:
  // What all of the group would share with it, or 0 where it begins another one.
  int64_t shared_with(const std::vector<int32_t>& prompt) const;
  void end_group();

  struct Member {
    size_t index = 0;  // of the request
    int64_t from = 0;  // its prompt is what comes behind so many tokens
  };
  void share(const SharedPrefix& prefix, const Member& member);
  std::vector<BatchRequest>& requests_;
  bool share_;
  std::vector<int32_t> first_;   // the whole prompt of the first one
  std::vector<Member> members_;
  int64_t n_shared_ = 0;         // of a group of two or more
  int64_t shortest_ = 0, longest_ = 0;
  int64_t n_saved_ = 0;
};

}  // namespace tiercel
