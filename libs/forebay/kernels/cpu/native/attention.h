// Attention of query heads over the paged keys and values of their sequence.
//
// The context is cut into segments of fixed length from position 0. Each segment gives a partial result (largest
// score, sum of weights, weighted sum of values), computed alone; partial results are folded in order of position. So
// a row's result does not depend on the rows beside it, nor on how segments are spread over threads. R = queries
// computed together.
#pragma once

#include <cmath>

#include "kv_block.h"
#include "panels.h"

namespace forebay {

constexpr int kSegmentTokens = 256;
constexpr int kMaxQueries = 6;
constexpr int kMaxHeadDim = 256;
constexpr int kBlocksAhead = 4;

// Result over some of the context: softmax-weighted sum of values = values / weight, relative to power(largest).
struct alignas(64) Partial {
  float values[kMaxHeadDim];
  float largest;
  float weight;
};

// Keys and values of one sequence, layer and kv head.
template <class Numbers>
struct Context {
  const std::uint8_t* arena;
  std::ptrdiff_t block_stride_bytes;
  const std::int32_t* block_table;
  std::ptrdiff_t key_offset;  // in numbers, see KvShape
  KvShape shape;
  int last_block;  // that the last query sees

  // The block to fetch while this one is computed: each is some pages of its own, which the hardware does not
  // foresee. Into the second cache: the first has too few places for lines under way to use all of the bandwidth.
  int ahead_of(int block) const { return block + kBlocksAhead < last_block ? block + kBlocksAhead : last_block; }
  const typename Numbers::Number* keys(int block) const {
    const std::uint8_t* const start = arena + block_table[block] * block_stride_bytes;
    return reinterpret_cast<const typename Numbers::Number*>(start) + key_offset;
  }
  const typename Numbers::Number* values(int block) const { return keys(block) + shape.value_offset(); }
};

// One query head at one position.
template <class Numbers>
struct Query {
  const typename Numbers::Number* numbers;  // [head_dim], scaled by query_scale()
  int position;
};

template <class Numbers, int R>
class SegmentAttention {
  using Number = typename Numbers::Number;
  using F32 = lanes::F32;
  static constexpr int kLanes = lanes::kCount;
  // Enough independent sums to hide the latency of each, few enough for registers.
  static constexpr int kScoreGroups = R <= 3 ? 4 : 2;

 public:
  // Partial results of R queries over segment `segment`. A query that lies before the segment gets weight 0.
  static void compute(const Context<Numbers>& context, const Query<Numbers>* queries, int segment, Partial* to) {
    const int start = segment * kSegmentTokens;
    int seen[R], most = 0;  // tokens of this segment that each query sees
    for (int r = 0; r < R; ++r) {
      const int tokens = queries[r].position + 1 - start;
      seen[r] = tokens < 0 ? 0 : (tokens > kSegmentTokens ? kSegmentTokens : tokens);
      most = seen[r] > most ? seen[r] : most;
    }
    alignas(64) float scores[R][kSegmentTokens];
    alignas(64) Number weights[R][kSegmentTokens];
    score(context, queries, start, most, scores);
    for (int r = 0; r < R; ++r) soften(scores[r], weights[r], seen[r], most, to[r]);
    const int head_dim = context.shape.head_dim;
    int dim = 0;
    for (; dim + 4 * kLanes <= head_dim; dim += 4 * kLanes) gather<4>(context, weights, start, most, dim, to);
    for (; dim < head_dim; dim += kLanes) gather<1>(context, weights, start, most, dim, to);
  }

 private:
  // scores[r][t] = q[r] . k[t] for the first `most` tokens, rounded up to whole lanes.
  static void score(const Context<Numbers>& context, const Query<Numbers>* queries, int start, int most,
                    float (&scores)[R][kSegmentTokens]) {
    int token = 0;
    for (; token + kScoreGroups * kLanes <= padded(most, kLanes); token += kScoreGroups * kLanes) {
      score_lanes<kScoreGroups>(context, queries, start + token, &scores[0][token]);
    }
    for (; token < most; token += kLanes) score_lanes<1>(context, queries, start + token, &scores[0][token]);
  }

  // The same for `Groups` times 16 tokens from position `start` on.
  template <int Groups>
  static void score_lanes(const Context<Numbers>& context, const Query<Numbers>* queries, int start, float* scores) {
    const int block_tokens = context.shape.block_tokens;
    const Number *from[Groups], *ahead[Groups];
    F32 sums[R][Groups];
    for (int group = 0; group < Groups; ++group) {
      const int position = start + group * kLanes, block = position / block_tokens;
      const int offset = 2 * (position % block_tokens);
      from[group] = context.keys(block) + offset;
      ahead[group] = context.keys(context.ahead_of(block)) + offset;
      for (auto& of_query : sums) of_query[group] = lanes::broadcast(0.0f);
    }
    const std::ptrdiff_t stride = 2 * block_tokens;
    for (int pair = 0; pair < context.shape.head_dim / 2; ++pair) {
#pragma GCC unroll lanes::kUnroll
      for (int group = 0; group < Groups; ++group) {
        __builtin_prefetch(ahead[group] + pair * stride, 0, 2);
#pragma GCC unroll lanes::kUnroll
        for (int r = 0; r < R; ++r) {
          sums[r][group] =
              Numbers::add_products(sums[r][group], from[group] + pair * stride, queries[r].numbers + 2 * pair);
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int group = 0; group < Groups; ++group) {
        lanes::store(scores + r * kSegmentTokens + group * kLanes, sums[r][group]);
      }
    }
  }

  // weights = power(score - largest); tokens that the query does not see get 0. A NaN score makes the weight's sum a
  // NaN.
  static void soften(const float* scores, Number* weights, int seen, int most, Partial& to) {
    using namespace lanes;
    const float nothing = -__builtin_inff();
    F32 most_lanes = broadcast(nothing);
    for (int t = 0; t < seen; t += kLanes) {
      most_lanes = maximum(most_lanes, keep_first(load(scores + t), seen - t, nothing));
    }
    to.largest = seen > 0 ? lanes::largest(most_lanes) : nothing;
    F32 total = broadcast(0.0f);
    for (int t = 0; t < most; t += kLanes) {
      F32 weight = broadcast(0.0f);
      if (t < seen) {
        weight = Numbers::power(subtract(load(scores + t), broadcast(to.largest)));
        weight = keep_first(weight, seen - t, 0.0f);
      }
      Numbers::store(weights + t, weight);
      total = add(total, weight);
    }
    to.weight = sum(total);
  }

  // to[r].values[dim ..] = sum over tokens of weights[r][t] * v[t][dim ..], two tokens at a time.
  template <int Groups>
  static void gather(const Context<Numbers>& context, const Number (&weights)[R][kSegmentTokens], int start, int most,
                     int dim, Partial* to) {
    F32 sums[R][Groups];
    for (auto& of_query : sums) {
      for (F32& sum : of_query) sum = lanes::broadcast(0.0f);
    }
    const int block_tokens = context.shape.block_tokens;
    const std::ptrdiff_t stride = 2 * context.shape.head_dim;
    for (int first = 0; first < most; first += block_tokens) {
      const int block = (start + first) / block_tokens;
      const int tokens = most - first < block_tokens ? most - first : block_tokens;
      const Number* from = context.values(block) + 2 * dim;
      const Number* ahead = context.values(context.ahead_of(block)) + 2 * dim;
      for (int token = 0; token < tokens; token += 2, from += stride, ahead += stride) {
#pragma GCC unroll lanes::kUnroll
        for (int group = 0; group < Groups; ++group) {
          __builtin_prefetch(ahead + 2 * kLanes * group, 0, 2);
#pragma GCC unroll lanes::kUnroll
          for (int r = 0; r < R; ++r) {
            sums[r][group] =
                Numbers::add_products(sums[r][group], from + 2 * kLanes * group, &weights[r][first + token]);
          }
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int group = 0; group < Groups; ++group) lanes::store(to[r].values + dim + group * kLanes, sums[r][group]);
    }
  }
};

// Partial results of `count` queries (1 .. kMaxQueries) over one segment.
template <class Numbers>
inline void attend_segment(const Context<Numbers>& context, const Query<Numbers>* queries, int count, int segment,
                           Partial* to) {
  switch (count) {
    case 1: return SegmentAttention<Numbers, 1>::compute(context, queries, segment, to);
    case 2: return SegmentAttention<Numbers, 2>::compute(context, queries, segment, to);
    case 3: return SegmentAttention<Numbers, 3>::compute(context, queries, segment, to);
    case 4: return SegmentAttention<Numbers, 4>::compute(context, queries, segment, to);
    case 5: return SegmentAttention<Numbers, 5>::compute(context, queries, segment, to);
    default: return SegmentAttention<Numbers, 6>::compute(context, queries, segment, to);
  }
}

template <class Numbers>
inline float query_scale(int head_dim) {
  return Numbers::kQueryScale / std::sqrt(static_cast<float>(head_dim));
}

// Adds what a later segment gave to `total`.
template <class Numbers>
inline void fold(Partial& total, const Partial& later, int head_dim) {
  using namespace lanes;
  const float largest = total.largest > later.largest ? total.largest : later.largest;
  const F32 shrink = Numbers::power(broadcast(total.largest - largest));
  const F32 shrink_later = Numbers::power(broadcast(later.largest - largest));
  for (int dim = 0; dim < head_dim; dim += kCount) {
    const F32 kept = multiply(load(total.values + dim), shrink);
    store(total.values + dim, multiply_add(load(later.values + dim), shrink_later, kept));
  }
  alignas(64) float factor[2][kCount];
  store(factor[0], shrink);
  store(factor[1], shrink_later);
  const float kept_weight = total.weight * factor[0][0];
  const float later_weight = later.weight * factor[1][0];
  total.weight = kept_weight + later_weight;
  total.largest = largest;
}

// The attention's output: [head_dim].
inline void finish(const Partial& total, int head_dim, float* to) {
  using namespace lanes;
  const F32 weight = broadcast(total.weight);
  for (int dim = 0; dim < head_dim; dim += kCount) store(to + dim, divide(load(total.values + dim), weight));
}

}  // namespace forebay
