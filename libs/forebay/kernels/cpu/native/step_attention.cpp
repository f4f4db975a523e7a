// The part of a step between the projections to queries, keys and values and the projection of attention's output.
#include <cmath>

#include "norm.h"
#include "rope.h"
#include "step.h"

namespace forebay {
namespace {

constexpr int kQueriesTogether = 8 * kMaxQueries;

}  // namespace

// Writes keys and values of all rows, then attends. When each sequence has one row, a row reads nothing of this step
// but its own key and value: the thread that wrote them goes on without waiting for the others.
template <class Numbers>
void DecoderStep::attention(const Layer& layer, int index, int thread) {
  const int kv_heads = model_.kv.kv_heads, count = static_cast<int>(spans_.size()) * kv_heads;
  const bool is_alone = !is_split_ && input_.row_count == input_.slice_count;
  for_each(count, 1, [&](int item) {
    const Span& span = spans_[static_cast<std::size_t>(item / kv_heads)];
    rope_and_write<Numbers>(span, item % kv_heads, layer, index);
    if (is_alone) attend_whole<Numbers>(span, item % kv_heads, index);
  });
  if (is_alone) return;
  meet(kRope, thread);
  if (is_split_) return attend_segments<Numbers>(index);
  // Last spans first: in a long prompt they have the most to read.
  for_each(count, 1, [&](int item) {
    const int backwards = count - 1 - item;
    attend_whole<Numbers>(spans_[static_cast<std::size_t>(backwards / kv_heads)], backwards % kv_heads, index);
  });
}

// Norms (Qwen3) and turns queries and keys, scales queries, and writes keys and values into the arena.
template <class Numbers>
void DecoderStep::rope_and_write(const Span& span, int kv_head, const Layer& layer, int index) {
  for (int row = span.first_row; row < span.first_row + span.row_count; ++row) {
    rope_head<Numbers>(span, row, kv_head, layer, index);
  }
}

template <class Numbers>
void DecoderStep::rope_head(const Span& span, int row, int kv_head, const Layer& layer, int index) {
  using Number = typename Numbers::Number;
  using namespace lanes;
  const KvShape& shape = model_.kv;
  const int head_dim = shape.head_dim, group = model_.queries_per_kv_head();
  const float* const rotation = rotations_.data() + product(row, head_dim);
  const auto turn = [&](float* head, const float* weight, float scale, Number* to) {
    if (weight != nullptr) {
      const float inverse = inverse_rms(head, head_dim, model_.norm_epsilon);
      for (int i = 0; i < head_dim; i += kCount) lanes::store(head + i, normed(head, weight, inverse, i));
    }
    rotate(head, rotation, head_dim / 2);
    for (int i = 0; i < head_dim; i += kCount) Numbers::store(to + i, multiply(load(head + i), broadcast(scale)));
  };
  const float scale = query_scale<Numbers>(head_dim);
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    const std::size_t offset = product(row, model_.query_width()) + product(head, head_dim);
    turn(query_.data() + offset, layer.query_norm, scale, reinterpret_cast<Number*>(query_numbers_.data()) + offset);
  }
  alignas(64) Number numbers[kMaxHeadDim];
  const std::size_t offset = product(row, model_.kv_width()) + product(kv_head, head_dim);
  const int position = span.position + row - span.first_row;
  const std::int32_t* const table = input_.block_tables + input_.table_starts[span.slice];
  std::uint8_t* const block = input_.arena + table[position / shape.block_tokens] * input_.block_stride_bytes;
  Number* const keys = reinterpret_cast<Number*>(block) + shape.key_offset(index, kv_head);
  turn(key_.data() + offset, layer.key_norm, 1.0f, numbers);
  write_key(keys, shape, position % shape.block_tokens, numbers);
  for (int i = 0; i < head_dim; i += kCount) Numbers::store(numbers + i, load(value_.data() + offset + i));
  const bool is_last = span.is_slice_end && row == span.first_row + span.row_count - 1;
  write_value(keys + shape.value_offset(), shape, position % shape.block_tokens, numbers, is_last);
}

template <class Numbers>
Context<Numbers> DecoderStep::context_of(const Span& span, int kv_head, int index) const {
  const std::int32_t* const table = input_.block_tables + input_.table_starts[span.slice];
  const int last_block = (span.position + span.row_count - 1) / model_.kv.block_tokens;
  return {input_.arena, input_.block_stride_bytes, table, model_.kv.key_offset(index, kv_head), model_.kv, last_block};
}

// Query i of a span and kv head: rows in order, the heads of each row that share the kv head.
template <class Numbers>
Query<Numbers> DecoderStep::query_of(const Span& span, int kv_head, int i) {
  const int group = model_.queries_per_kv_head();
  const int row = span.first_row + i / group, head = kv_head * group + i % group;
  const auto* numbers = reinterpret_cast<const typename Numbers::Number*>(query_numbers_.data());
  const std::size_t offset = product(row, model_.query_width()) + product(head, model_.kv.head_dim);
  return {numbers + offset, span.position + i / group};
}

template <class Numbers>
void DecoderStep::attend_segments(int index) {
  const int kv_heads = model_.kv.kv_heads, group = model_.queries_per_kv_head();
  for_each(static_cast<int>(segment_items_.size()), 1, [&](int item) {
    const auto [span_index, kv_head, segment] = segment_items_[static_cast<std::size_t>(item)];
    const Span& span = spans_[static_cast<std::size_t>(span_index)];
    const Context<Numbers> context = context_of<Numbers>(span, kv_head, index);
    const int queries = span.row_count * group;
    Partial* const to =
        partials_.data() + span.first_partial + (segment * kv_heads + kv_head) * span.row_count * group;
    for (int first = 0; first < queries; first += kMaxQueries) {
      const int count = queries - first < kMaxQueries ? queries - first : kMaxQueries;
      Query<Numbers> some[kMaxQueries];
      for (int i = 0; i < count; ++i) some[i] = query_of<Numbers>(span, kv_head, first + i);
      attend_segment(context, some, count, segment, to + first);
    }
  });
}

// Segment by segment for many queries, so that keys and values are read from afar once.
template <class Numbers>
void DecoderStep::attend_whole(const Span& span, int kv_head, int index) {
  const Context<Numbers> context = context_of<Numbers>(span, kv_head, index);
  const int group = model_.queries_per_kv_head(), queries = span.row_count * group, head_dim = model_.kv.head_dim;
  for (int first = 0; first < queries; first += kQueriesTogether) {
    const int end = first + kQueriesTogether < queries ? first + kQueriesTogether : queries;
    Partial total[kQueriesTogether], later[kMaxQueries];
    const int last_segment = (span.position + (end - 1) / group) / kSegmentTokens;
    for (int segment = 0; segment <= last_segment; ++segment) {
      for (int some = first; some < end; some += kMaxQueries) {
        const int count = end - some < kMaxQueries ? end - some : kMaxQueries;
        Query<Numbers> queries_of[kMaxQueries];
        for (int i = 0; i < count; ++i) queries_of[i] = query_of<Numbers>(span, kv_head, some + i);
        Partial* const to = total + some - first;
        attend_segment(context, queries_of, count, segment, segment == 0 ? to : later);
        for (int i = 0; segment > 0 && i < count; ++i) {
          if (queries_of[i].position >= segment * kSegmentTokens) fold<Numbers>(to[i], later[i], head_dim);
        }
      }
    }
    for (int i = first; i < end; ++i) {
      const int row = span.first_row + i / group, head = kv_head * group + i % group;
      finish(total[i - first], head_dim, query_.data() + product(row, model_.query_width()) + product(head, head_dim));
    }
  }
}

// Folds the partial results of one span, when attention was split.
template <class Numbers>
void DecoderStep::join(const Span& span) {
  const int head_dim = model_.kv.head_dim, group = model_.queries_per_kv_head(), kv_heads = model_.kv.kv_heads;
  for (int item = 0; item < span.row_count * model_.query_heads; ++item) {
    const int i = item / model_.query_heads, head = item % model_.query_heads;
    const auto partial = [&](int segment) -> Partial& {
      const int before = (segment * kv_heads + head / group) * span.row_count * group;
      return partials_.data()[span.first_partial + before + i * group + head % group];
    };
    Partial& total = partial(0);
    const int last_segment = (span.position + i) / kSegmentTokens;
    for (int segment = 1; segment <= last_segment; ++segment) fold<Numbers>(total, partial(segment), head_dim);
    float* const row = query_.data() + product(span.first_row + i, model_.query_width());
    finish(total, head_dim, row + product(head, head_dim));
  }
}

void DecoderStep::join_and_encode() {
  if (is_split_) {
    for_each(static_cast<int>(spans_.size()), 1, [this](int item) {
      const Span& span = spans_[static_cast<std::size_t>(item)];
      model_.is_kv_float32 ? join<F32Numbers>(span) : join<Bf16Numbers>(span);
      for (int row = span.first_row; row < span.first_row + span.row_count; ++row) {
        encode_attention({panels_.holding(row), row, 0, groups_of(model_.query_width())});
      }
    });
  } else {
    for_each_place(groups_of(model_.query_width()), [this](const Place& place) { encode_attention(place); });
  }
}

void DecoderStep::encode_attention(const Place& place) {
  const int width = model_.query_width();
  const float* const x = query_.data() + product(place.row, width);
  for (int group = place.first_group; group < place.end_group; ++group) {
    const int first = group * kGroup;
    const bool is_half = first + lanes::kCount >= width;
    const lanes::F32 second = is_half ? lanes::broadcast(0.0f) : lanes::load(x + first + lanes::kCount);
    attention_in_.encode(place.panel, place.row, group, lanes::load(x + first), second);
  }
}

template void DecoderStep::attention<Bf16Numbers>(const Layer&, int, int);
template void DecoderStep::attention<F32Numbers>(const Layer&, int, int);

}  // namespace forebay
