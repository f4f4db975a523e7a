#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace forebay {
namespace {

constexpr int kBlock = 64;
constexpr int kPointBits = 53;
constexpr int kSampledOf = 16;  // blocks
constexpr double kFloorStep = 3.0;  // octaves
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr double kWeightless = -kUnitBits - 2.0;  // octaves, from which on a weight is 0
constexpr int kBuckets = 512;
constexpr double kBucketsPerOctave = kBuckets / kWeightless;  // negative, as octaves are

std::uint64_t part_of(std::uint64_t point, std::uint64_t total) {
  return static_cast<std::uint64_t>((static_cast<unsigned __int128>(point) * total) >> kPointBits);
}

}  // namespace

void Sampler::reserve(int vocabulary) {
  vocabulary_ = vocabulary;
  block_count_ = (vocabulary + kBlock - 1) / kBlock;
  block_largest_.reserve(static_cast<std::size_t>(block_count_));
  block_weight_.reserve(static_cast<std::size_t>(block_count_));
  bucket_weight_.reserve(kBuckets);
}

void Sampler::reserve_for(const Draw& draw) {
  raw_.reserve(static_cast<std::size_t>(draw.penalty_count));
  const bool has_candidates = draw.top_p < 1.0 || (draw.top_k > 0 && draw.top_k < vocabulary_);
  if (!draw.is_greedy && has_candidates) candidates_.reserve(static_cast<std::size_t>(vocabulary_ + kWeightsTogether));
}

std::size_t Sampler::size_bytes() const {
  return block_largest_.size_bytes() + block_weight_.size_bytes() + raw_.size_bytes() + candidates_.size_bytes() +
         bucket_weight_.size_bytes();
}

bool Sampler::choose(float* logits, const Draw& draw, std::int32_t& token) {
  logits_ = logits;
  if (!scan()) return false;
  penalize(draw);
  largest_ = *std::max_element(block_largest_.data(), block_largest_.data() + block_count_);
  token = draw.is_greedy ? largest_token() : drawn_token(draw);
  for (int i = 0; i < draw.penalty_count; ++i) logits_[draw.penalty_tokens[i]] = raw_.data()[i];
  return true;
}

int Sampler::block_end(int block) const { return std::min(vocabulary_, (block + 1) * kBlock); }

// Largest logits of all blocks, and whether all logits are finite.
bool Sampler::scan() {
  using namespace lanes;
  F32 poison = broadcast(0.0f);
  for (int block = 0; block < block_count_; ++block) poison = add(poison, scan_block(block));
  return sum(poison) == 0.0f;
}

// Notes the largest logit of a block; what it returns adds up to 0 unless a logit is NaN or infinite.
lanes::F32 Sampler::scan_block(int block) {
  using namespace lanes;
  F32 most = broadcast(kNothing), poison = broadcast(0.0f);
  for (int first = block * kBlock; first < block_end(block); first += kCount) {
    const F32 some = load(logits_ + first);
    poison = add(poison, keep_first(subtract(some, some), vocabulary_ - first, 0.0f));
    most = maximum(most, keep_first(some, vocabulary_ - first, kNothing));
  }
  block_largest_.data()[block] = largest(most);
  return poison;
}

void Sampler::penalize(const Draw& draw) {
  for (int i = 0; i < draw.penalty_count; ++i) {
    float& logit = logits_[draw.penalty_tokens[i]];
    raw_.data()[i] = logit;
    const float scaled = logit > 0.0f ? logit / draw.repetition : logit * draw.repetition;
    logit = std::clamp(scaled - draw.penalty_losses[i], -kLargest, kLargest);
    const int block = draw.penalty_tokens[i] / kBlock;
    if (i + 1 == draw.penalty_count || draw.penalty_tokens[i + 1] / kBlock != block) scan_block(block);
  }
}

std::int32_t Sampler::largest_token() {
  int block = 0;
  while (block_largest_.data()[block] != largest_) ++block;
  int token = block * kBlock;
  while (logits_[token] != largest_) ++token;
  return token;
}

std::int32_t Sampler::drawn_token(const Draw& draw) {
  octaves_per_logit_ = draw.octaves_per_logit;
  least_octaves_ = draw.least_octaves;
  if (0 < draw.top_k && draw.top_k < vocabulary_) {
    least_octaves_ = std::max(least_octaves_, octaves(kth_largest(draw.top_k)));
  }
  const std::uint64_t total = weigh();
  if (draw.top_p < 1.0) return nucleus_token(draw, total);
  return token_at(part_of(draw.point, total));
}

double Sampler::octaves(float logit) const {
  return (static_cast<double>(logit) - static_cast<double>(largest_)) * octaves_per_logit_;
}

float Sampler::kth_largest(int k) {
  // k blocks' largest logits are at least the k-th largest of them, which therefore is at most that of all logits.
  float least_logit = kNothing;
  Candidate* const first = candidates_.data();
  if (k <= block_count_) {
    for (int block = 0; block < block_count_; ++block) first[block] = {block_largest_.data()[block], block};
    std::nth_element(first, first + k - 1, first + block_count_);
    least_logit = first[k - 1].logit;
  }
  gather(least_logit, 1);
  std::nth_element(first, first + k - 1, first + candidate_count_);
  return first[k - 1].logit;
}

// Candidates: tokens of at least that logit, in one of so many blocks.
void Sampler::gather(float least_logit, int block_step) {
  candidate_count_ = 0;
  for (int block = 0; block < block_count_; block += block_step) {
    if (block_largest_.data()[block] >= least_logit) gather_block(block, least_logit);
  }
}

void Sampler::gather_block(int block, float least_logit) {
  const float* const logits = logits_ + block * kBlock;
  const int count = block_end(block) - block * kBlock;
  std::uint8_t is_candidate[kBlock] = {};
  for (int i = 0; i < count; ++i) is_candidate[i] = logits[i] >= least_logit ? 1 : 0;
  for (int some = 0; some < kBlock; some += 8) {
    std::uint64_t any;
    std::memcpy(&any, is_candidate + some, sizeof any);
    if (any == 0) continue;
    for (int i = some; i < some + 8 && i < count; ++i) {
      candidates_.data()[candidate_count_] = {logits[i], block * kBlock + i};
      candidate_count_ += is_candidate[i];
    }
  }
}

// Weights of all blocks, and their sum.
std::uint64_t Sampler::weigh() {
  std::uint64_t total = 0;
  for (int block = 0; block < block_count_; ++block) {
    const bool has_weight = octaves(block_largest_.data()[block]) >= std::max(least_octaves_, kWeightless);
    const std::uint64_t weight = has_weight ? weigh_block(block) : 0;
    block_weight_.data()[block] = weight;
    total += weight;
  }
  return total;
}

std::uint64_t Sampler::weigh_block(int block) const {
  float padded[kBlock];
  const float* logits = logits_ + block * kBlock;
  if (block_end(block) < (block + 1) * kBlock) {
    const float* const end = logits_ + block_end(block);
    std::fill(std::copy(logits, end, padded), padded + kBlock, kNothing);
    logits = padded;
  }
  Weights sum{};
  for (int first = 0; first < kBlock; first += kWeightsTogether) {
    sum += kept_weights(octaves_of(logits + first));
  }
  return sum_of(sum);
}

Doubles Sampler::octaves_of(const float* logits) const {
  return (load_doubles(logits) - static_cast<double>(largest_)) * octaves_per_logit_;
}

// What tokens weigh; 0 when a filter leaves them out.
Weights Sampler::kept_weights(const Doubles& octaves) const {
  return token_weights(octaves) & (Weights)(octaves >= least_octaves_);
}

std::uint64_t Sampler::kept_weight(float logit) const { return kept_weights(Doubles{} + octaves(logit))[0]; }

// The token, in order of ids, with which the sum of weights exceeds the target.
std::int32_t Sampler::token_at(std::uint64_t target) {
  int block = 0;
  while (block_weight_.data()[block] <= target) target -= block_weight_.data()[block++];
  int token = block * kBlock;
  for (std::uint64_t weight; (weight = kept_weight(logits_[token])) <= target; ++token) target -= weight;
  return token;
}

// The nucleus: the fewest likeliest tokens that reach top_p of the total.
std::int32_t Sampler::nucleus_token(const Draw& draw, std::uint64_t total) {
  const auto wanted = static_cast<std::uint64_t>(std::ceil(draw.top_p * static_cast<double>(total)));
  const std::uint64_t needed = std::clamp(wanted, std::uint64_t{1}, total);
  // Any floor is right above which there is enough.
  for (double floor = likely_floor(total - needed);; floor -= kFloorStep) {
    gather(static_cast<float>(std::max(largest_ + floor / octaves_per_logit_, double{-kLargest})), 1);
    if (fill_buckets() >= needed) break;
  }
  return likely_at(part_of(draw.point, likely_at(needed - 1).sum)).token;
}

// A guess, from a sample of the blocks: tokens of fewer octaves weigh about three quarters of `spare`.
double Sampler::likely_floor(std::uint64_t spare) {
  gather(kNothing, kSampledOf);
  fill_buckets();
  std::uint64_t weight = 0;
  int bucket = kBuckets;
  while (bucket > 0 && weight <= spare / 4 * 3 / kSampledOf) weight += bucket_weight_.data()[--bucket];
  return (bucket + 1) / kBucketsPerOctave;
}

int Sampler::bucket_of(float logit) const {
  return static_cast<int>(std::min(octaves(logit) * kBucketsPerOctave, kBuckets - 1.0));
}

// Weights of the candidates by bucket, likelier ones in lower buckets, and their sum.
std::uint64_t Sampler::fill_buckets() {
  std::fill_n(bucket_weight_.data(), kBuckets, 0);
  Candidate* const candidates = candidates_.data();
  std::fill_n(candidates + candidate_count_, kWeightsTogether, Candidate{kNothing, 0});  // weighs nothing
  Weights total{};
  for (int some = 0; some < candidate_count_; some += kWeightsTogether) {
    float logits[kWeightsTogether];
    for (int i = 0; i < kWeightsTogether; ++i) logits[i] = candidates[some + i].logit;
    const Doubles octaves = octaves_of(logits), places = octaves * kBucketsPerOctave;
    const Doubles last = Doubles{} + (kBuckets - 1.0);
    const Weights buckets = __builtin_convertvector(places < last ? places : last, Weights);
    const Weights weights = kept_weights(octaves);
    for (int i = 0; i < kWeightsTogether; ++i) bucket_weight_.data()[buckets[i]] += weights[i];
    total += weights;
  }
  return sum_of(total);
}

// The candidate, likeliest first, with which the sum of weights exceeds the target, and that sum.
Sampler::Likely Sampler::likely_at(std::uint64_t target) {
  std::uint64_t sum = 0;
  int bucket = 0;
  while (sum + bucket_weight_.data()[bucket] <= target) {
    sum += bucket_weight_.data()[bucket++];
  }
  Candidate* const first = candidates_.data();
  Candidate* const end = std::partition(first, first + candidate_count_,
                                        [&](const Candidate& one) { return bucket_of(one.logit) == bucket; });
  std::sort(first, end);
  const Candidate* one = first;
  while ((sum += kept_weight(one->logit)) <= target) ++one;
  return {one->token, sum};
}

}  // namespace forebay
