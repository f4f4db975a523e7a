// Choosing a token from one row of logits: the native form of engine/sampler.py, whose token it always gives.
//
// Weights of tokens are whole numbers (see token_weight.h), so that sums do not depend on their order. Nothing here is
// as long as the vocabulary but the row itself, and the candidates of top_k and top_p: largest logits of blocks of 64
// say which blocks need be looked at.
#pragma once

#include <cstdint>

#include "lanes.h"
#include "memory.h"
#include "token_weight.h"

namespace forebay {

// How a token is chosen; see engine/draw.py.
struct Draw {
  bool is_greedy;
  std::uint64_t point;  // random, of 53 bits
  double octaves_per_logit;
  double least_octaves;
  double top_p;
  int top_k;
  // Of tokens seen before: logits change before anything else is done with them.
  int penalty_count;
  const std::int32_t* penalty_tokens;  // [penalty_count]
  const float* penalty_losses;         // [penalty_count]
  float repetition;
};

// Of one thread.
class Sampler {
 public:
  // Makes room for rows of so many logits.
  void reserve(int vocabulary);
  // Makes room for one draw.
  void reserve_for(const Draw& draw);
  // Whether all of [vocabulary] logits are finite. If so, `token` is what the draw takes, of equals the lower id first.
  // Logits are changed for a while only. They are read in whole vectors of 16.
  bool choose(float* logits, const Draw& draw, std::int32_t& token);
  std::size_t size_bytes() const;

 private:
  struct Candidate {
    float logit;
    std::int32_t token;
    bool operator<(const Candidate& other) const {  // likelier
      return logit != other.logit ? logit > other.logit : token < other.token;
    }
  };

  struct Likely {
    std::int32_t token;
    std::uint64_t sum;
  };

  int block_end(int block) const;
  bool scan();
  lanes::F32 scan_block(int block);
  void penalize(const Draw& draw);
  std::int32_t largest_token();
  std::int32_t drawn_token(const Draw& draw);
  double octaves(float logit) const;
  Doubles octaves_of(const float* logits) const;  // [kWeightsTogether]
  float kth_largest(int k);
  void gather(float least_logit, int block_step);
  void gather_block(int block, float least_logit);
  std::uint64_t weigh();
  std::uint64_t weigh_block(int block) const;
  Weights kept_weights(const Doubles& octaves) const;
  std::uint64_t kept_weight(float logit) const;
  std::int32_t token_at(std::uint64_t target);
  std::int32_t nucleus_token(const Draw& draw, std::uint64_t total);
  int bucket_of(float logit) const;
  std::uint64_t fill_buckets();
  double likely_floor(std::uint64_t spare);
  Likely likely_at(std::uint64_t target);

  int vocabulary_ = 0, block_count_ = 0;
  AlignedArray<float> block_largest_;  // [block_count]
  AlignedArray<std::uint64_t> block_weight_;
  AlignedArray<float> raw_;  // of penalized tokens
  AlignedArray<Candidate> candidates_;
  int candidate_count_ = 0;
  AlignedArray<std::uint64_t> bucket_weight_;  // of candidates
  // Of the row at hand:
  float* logits_ = nullptr;
  float largest_ = 0.0f;
  double octaves_per_logit_ = 0.0, least_octaves_ = 0.0;
};

}  // namespace forebay
