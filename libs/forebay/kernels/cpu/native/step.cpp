#include "step.h"

#include <chrono>
#include <cmath>

#include "norm.h"
#include "rope.h"

namespace forebay {
namespace {

constexpr int kSpanRows = 16;
constexpr int kSplitBelow = 16;     // (span, kv head) pairs
constexpr int kChunksPerThread = 4;

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::size_t product(int a, int b) { return static_cast<std::size_t>(a) * static_cast<std::size_t>(b); }

}  // namespace

void DecoderStep::Inputs::reserve(std::initializer_list<const Linear*> readers, int row_count, int inputs) {
  for (const Linear* reader : readers) {
    const Encoding encoding = encoding_for(reader->format);
    is_wanted[static_cast<std::size_t>(encoding)] = true;
    encoded[static_cast<std::size_t>(encoding)].reserve(encoding, row_count, inputs);
  }
}

void DecoderStep::Inputs::encode(const Panel& panel, int row, int group, lanes::F32 first, lanes::F32 second) {
  for (std::size_t i = 0; i < kEncodings; ++i) {
    if (is_wanted[i]) encoded[i].encode(panel, row, group, first, second);
  }
}

void DecoderStep::prepare(const StepInput& input, int thread_count) {
  input_ = input;
  thread_count_ = thread_count;
  meeting_.open(thread_count);
  panels_.cut(input.row_count);
  sample_panels_.cut(input.sample_count);
  const int rows = input.row_count;
  hidden_stride_ = padded(model_.hidden, kGroup);
  x_.reserve(product(rows, hidden_stride_));
  query_.reserve(product(rows, model_.query_width() + kGroup));  // the last row is read in whole groups
  key_.reserve(product(rows, model_.kv_width()));
  value_.reserve(product(rows, model_.kv_width()));
  rotations_.reserve(product(rows, model_.kv.head_dim));
  query_numbers_.reserve(product(rows, model_.query_width()) * (model_.is_kv_float32 ? 4 : 2));
  for (const Layer& layer : model_.layers) {
    hidden_in_.reserve({&layer.query, &layer.key, &layer.value, &layer.gate, &layer.up}, rows, model_.hidden);
    attention_in_.reserve({&layer.output}, rows, model_.query_width());
    feed_forward_in_.reserve({&layer.down}, rows, model_.intermediate);
  }
  head_in_.reserve({&model_.head}, input.sample_count, model_.hidden);
  head_rest_in_.reserve({&model_.head}, input.sample_count, model_.hidden);
  cut_spans();
}

void DecoderStep::cut_spans() {
  spans_.clear();
  int row = 0;
  for (int slice = 0; slice < input_.slice_count; ++slice) {
    const int end = row + input_.slice_rows[slice];
    int position = input_.slice_positions[slice];
    while (row < end) {
      const int to_boundary = kSpanRows - position % kSpanRows;
      const int count = to_boundary < end - row ? to_boundary : end - row;
      spans_.push_back({row, count, position, slice, row + count == end, 0});
      row += count;
      position += count;
    }
  }
  segment_items_.clear();
  is_split_ = static_cast<int>(spans_.size()) * model_.kv.kv_heads < kSplitBelow;
  if (!is_split_) return;
  int partial_count = 0;
  for (std::size_t i = 0; i < spans_.size(); ++i) {
    Span& span = spans_[i];
    const int segments = (span.position + span.row_count + kSegmentTokens - 1) / kSegmentTokens;
    span.first_partial = partial_count;
    partial_count += segments * span.row_count * model_.query_heads;
    for (int kv_head = 0; kv_head < model_.kv.kv_heads; ++kv_head) {
      for (int segment = 0; segment < segments; ++segment) {
        segment_items_.push_back({static_cast<int>(i), kv_head, segment});
      }
    }
  }
  partials_.reserve(static_cast<std::size_t>(partial_count));
}

void DecoderStep::run(int thread) {
  if (is_timed && thread == 0) phase_start_s_ = now_s();
  embed();
  meet(kEmbed, thread);
  for (int index = 0; index < static_cast<int>(model_.layers.size()); ++index) {
    const Layer& layer = model_.layers[static_cast<std::size_t>(index)];
    norm(layer.attention_norm, hidden_in_);
    meet(kNorm, thread);
    project_qkv(layer);
    meet(kQkv, thread);
    model_.is_kv_float32 ? rope_and_write<F32Numbers>(layer, index) : rope_and_write<Bf16Numbers>(layer, index);
    meet(kRope, thread);
    model_.is_kv_float32 ? attend<F32Numbers>(index) : attend<Bf16Numbers>(index);
    meet(kAttention, thread);
    join_and_encode();
    meet(kJoin, thread);
    add_projection(layer.output, attention_in_);
    meet(kOutput, thread);
    norm(layer.feed_forward_norm, hidden_in_);
    meet(kNorm, thread);
    gate_up(layer);
    meet(kGateUp, thread);
    add_projection(layer.down, feed_forward_in_);
    meet(kDown, thread);
  }
  if (input_.sample_count == 0) return;
  norm_samples();
  meet(kNorm, thread);
  head();
  meet(kHead, thread);
  for_each(input_.sample_count, 1, [this](int sample) { scan(sample); });
  meet(kScan, thread);
}

void DecoderStep::meet(Phase phase, int thread) {
  meeting_.wait();
  if (is_timed && thread == 0) {
    const double now = now_s();
    phase_seconds_[phase] += now - phase_start_s_;
    phase_start_s_ = now;
  }
}

int DecoderStep::chunk_of(int count) const {
  const int chunks = thread_count_ * kChunksPerThread;
  return count < chunks ? 1 : count / chunks;
}

void DecoderStep::for_each(int count, int chunk, const std::function<void(int)>& compute) {
  for (int first; (first = meeting_.take(chunk)) < count;) {
    const int end = first + chunk < count ? first + chunk : count;
    for (int item = first; item < end; ++item) compute(item);
  }
}

// Embeddings into x, and the rotations of all positions.
void DecoderStep::embed() {
  const int half = model_.kv.head_dim / 2;
  for_each(static_cast<int>(spans_.size()), 1, [&](int item) {
    const Span& span = spans_[static_cast<std::size_t>(item)];
    for (int i = 0; i < span.row_count; ++i) {
      const int row = span.first_row + i;
      unpack_row(model_.embedding, input_.token_ids[row], x_.data() + product(row, hidden_stride_));
      rotation_of(span.position + i, model_.inverse_frequencies, half,
                  rotations_.data() + product(row, model_.kv.head_dim));
    }
  });
}

void DecoderStep::norm_row(const float* x, const float* weight, const Panel& panel, int row, Inputs& to) {
  const float inverse = inverse_rms(x, model_.hidden, model_.norm_epsilon);
  for (int group = 0; group < groups_of(model_.hidden); ++group) {
    const int first = group * kGroup;
    to.encode(panel, row, group, normed(x, weight, inverse, first), normed(x, weight, inverse, first + lanes::kCount));
  }
}

void DecoderStep::norm(const float* weight, Inputs& to) {
  for_each(input_.row_count, chunk_of(input_.row_count), [&](int row) {
    norm_row(x_.data() + product(row, hidden_stride_), weight, panels_.holding(row), row, to);
  });
}

// x += linear(from)
void DecoderStep::add_projection(const Linear& linear, Inputs& from) {
  Activations& inputs = from.of(linear);
  for_each(linear.tile_count(), chunk_of(linear.tile_count()), [&](int tile) {
    for (const Panel& panel : panels_.list) {
      float* const first = x_.data() + product(panel.first_row, hidden_stride_) + tile * kTileOutputs;
      linear_tile(linear, tile, inputs, panel, {first, hidden_stride_, nullptr, true});
    }
  });
}

void DecoderStep::project_qkv(const Layer& layer) {
  const int query_tiles = layer.query.tile_count(), key_tiles = layer.key.tile_count();
  const int count = query_tiles + key_tiles + layer.value.tile_count();
  for_each(count, chunk_of(count), [&](int item) {
    const bool is_query = item < query_tiles, is_key = !is_query && item < query_tiles + key_tiles;
    const Linear& linear = is_query ? layer.query : (is_key ? layer.key : layer.value);
    const int tile = is_query ? item : (is_key ? item - query_tiles : item - query_tiles - key_tiles);
    float* const to = is_query ? query_.data() : (is_key ? key_.data() : value_.data());
    const std::ptrdiff_t stride = is_query ? model_.query_width() : model_.kv_width();
    for (const Panel& panel : panels_.list) {
      linear_tile(linear, tile, hidden_in_.of(linear), panel,
                  {to + panel.first_row * stride + tile * kTileOutputs, stride, nullptr, false});
    }
  });
}

// Norms (Qwen3) and turns queries and keys, scales queries, and writes keys and values into the arena.
template <class Numbers>
void DecoderStep::rope_and_write(const Layer& layer, int index) {
  for_each(static_cast<int>(spans_.size()) * model_.kv.kv_heads, 1, [&](int item) {
    const Span& span = spans_[static_cast<std::size_t>(item / model_.kv.kv_heads)];
    for (int row = span.first_row; row < span.first_row + span.row_count; ++row) {
      rope_head<Numbers>(span, row, item % model_.kv.kv_heads, layer, index);
    }
  });
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
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
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
  return {input_.arena, input_.block_stride_bytes, table, model_.kv.key_offset(index, kv_head), model_.kv};
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
void DecoderStep::attend(int index) {
  const int kv_heads = model_.kv.kv_heads, group = model_.queries_per_kv_head();
  if (!is_split_) {
    // Last spans first: in a long prompt they have the most to read.
    const int count = static_cast<int>(spans_.size()) * kv_heads;
    return for_each(count, 1, [&](int item) {
      const int backwards = count - 1 - item;
      attend_whole<Numbers>(spans_[static_cast<std::size_t>(backwards / kv_heads)], backwards % kv_heads, index);
    });
  }
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

template <class Numbers>
void DecoderStep::attend_whole(const Span& span, int kv_head, int index) {
  const Context<Numbers> context = context_of<Numbers>(span, kv_head, index);
  const int group = model_.queries_per_kv_head(), queries = span.row_count * group, head_dim = model_.kv.head_dim;
  for (int first = 0; first < queries; first += kMaxQueries) {
    const int count = queries - first < kMaxQueries ? queries - first : kMaxQueries;
    Query<Numbers> some[kMaxQueries];
    for (int i = 0; i < count; ++i) some[i] = query_of<Numbers>(span, kv_head, first + i);
    Partial total[kMaxQueries], later[kMaxQueries];
    attend_segment(context, some, count, 0, total);
    const int last_segment = some[count - 1].position / kSegmentTokens;
    for (int segment = 1; segment <= last_segment; ++segment) {
      attend_segment(context, some, count, segment, later);
      for (int i = 0; i < count; ++i) {
        if (some[i].position >= segment * kSegmentTokens) fold(total[i], later[i], head_dim);
      }
    }
    for (int i = 0; i < count; ++i) {
      const int row = span.first_row + (first + i) / group, head = kv_head * group + (first + i) % group;
      finish(total[i], head_dim, query_.data() + product(row, model_.query_width()) + product(head, head_dim));
    }
  }
}

// Folds partial results, if attention was split, and encodes its output.
void DecoderStep::join_and_encode() {
  const int heads = model_.query_heads, head_dim = model_.kv.head_dim, group = model_.queries_per_kv_head();
  const int kv_heads = model_.kv.kv_heads, width = model_.query_width();
  for_each(static_cast<int>(spans_.size()), 1, [&](int item) {
    const Span& span = spans_[static_cast<std::size_t>(item)];
    for (int i = 0; i < span.row_count; ++i) {
      const int row = span.first_row + i;
      float* const out = query_.data() + product(row, width);
      for (int head = 0; is_split_ && head < heads; ++head) {
        const int query = i * group + head % group, kv_head = head / group;
        const auto partial = [&](int segment) -> Partial& {
          return partials_.data()[span.first_partial +
                                  (segment * kv_heads + kv_head) * span.row_count * group + query];
        };
        Partial& total = partial(0);
        const int last_segment = (span.position + i) / kSegmentTokens;
        for (int segment = 1; segment <= last_segment; ++segment) fold(total, partial(segment), head_dim);
        finish(total, head_dim, out + product(head, head_dim));
      }
      for (int first = 0; first < width; first += kGroup) {
        const bool is_half = first + lanes::kCount >= width;
        const lanes::F32 second = is_half ? lanes::broadcast(0.0f) : lanes::load(out + first + lanes::kCount);
        attention_in_.encode(panels_.holding(row), row, first / kGroup, lanes::load(out + first), second);
      }
    }
  });
}

// silu(gate) * up for 32 outputs at a time, encoded on the spot: that is one group of the next layer's input.
void DecoderStep::gate_up(const Layer& layer) {
  const int count = groups_of(model_.intermediate), tiles = layer.gate.tile_count();
  for_each(count, chunk_of(count), [&](int group) {
    alignas(64) float gate[kMaxPanelWidth][kGroup] = {}, up[kMaxPanelWidth][kGroup] = {};
    for (const Panel& panel : panels_.list) {
      for (int half = 0; half < 2 && 2 * group + half < tiles; ++half) {
        const int tile = 2 * group + half, first = half * kTileOutputs;
        linear_tile(layer.gate, tile, hidden_in_.of(layer.gate), panel, {&gate[0][first], kGroup, nullptr, false});
        linear_tile(layer.up, tile, hidden_in_.of(layer.up), panel, {&up[0][first], kGroup, nullptr, false});
      }
      for (int i = 0; i < panel.width; ++i) {
        lanes::F32 half[2];
        for (int h = 0; h < 2; ++h) {
          const int first = h * lanes::kCount;
          half[h] = lanes::multiply(silu(lanes::load(&gate[i][first])), lanes::load(&up[i][first]));
        }
        feed_forward_in_.encode(panel, panel.first_row + i, group, half[0], half[1]);
      }
    }
  });
}

// The final norm of the rows that are sampled. For an 8-bit head also what rounding took away, as rows of their own: the head
// is where rounding costs most accuracy (a third of the KL), and few rows reach it.
void DecoderStep::norm_samples() {
  const bool has_rest = head_in_.is_wanted[static_cast<std::size_t>(Encoding::kInt8)];
  for_each(input_.sample_count, 1, [&](int sample) {
    const float* const x = x_.data() + product(input_.sample_rows[sample], hidden_stride_);
    const Panel& panel = sample_panels_.holding(sample);
    norm_row(x, model_.final_norm, panel, sample, head_in_);
    if (!has_rest) return;
    Activations& encoded = head_in_.of(model_.head);
    const float inverse = inverse_rms(x, model_.hidden, model_.norm_epsilon);
    for (int group = 0; group < groups_of(model_.hidden); ++group) {
      const int first = group * kGroup;
      float kept[kGroup];
      encoded.decode_int8(panel, sample, group, kept);
      const auto rest = [&](int i) {
        return lanes::subtract(normed(x, model_.final_norm, inverse, first + i), lanes::load(kept + i));
      };
      head_rest_in_.encode(panel, sample, group, rest(0), rest(lanes::kCount));
    }
  });
}

void DecoderStep::head() {
  const bool has_rest = head_in_.is_wanted[static_cast<std::size_t>(Encoding::kInt8)];
  for_each(model_.head.tile_count(), chunk_of(model_.head.tile_count()), [&](int tile) {
    for (const Panel& panel : sample_panels_.list) {
      float* const first = input_.logits + panel.first_row * input_.logits_stride + tile * kTileOutputs;
      if (has_rest) {
        linear_tile(model_.head, tile, head_rest_in_.of(model_.head), panel, {first, input_.logits_stride, nullptr, false});
      }
      linear_tile(model_.head, tile, head_in_.of(model_.head), panel, {first, input_.logits_stride, nullptr, has_rest});
    }
  });
}

// Whether a row of logits is finite, and its largest.
void DecoderStep::scan(int sample) {
  const float* const logits = input_.logits + sample * input_.logits_stride;
  using namespace lanes;
  const float nothing = -__builtin_inff();
  F32 poison = broadcast(0.0f), most = broadcast(nothing);
  for (int first = 0; first < model_.vocabulary; first += kCount) {
    const int left = model_.vocabulary - first;
    const F32 some = load(logits + first);
    poison = add(poison, keep_first(subtract(some, some), left, 0.0f));
    most = maximum(most, keep_first(some, left, nothing));
  }
  input_.is_finite[sample] = sum(poison) == 0.0f ? 1 : 0;
  const float largest_logit = largest(most);
  int best = 0;
  while (best < model_.vocabulary - 1 && logits[best] != largest_logit) ++best;
  input_.best_tokens[sample] = best;
}

std::size_t DecoderStep::workspace_bytes() const {
  std::size_t bytes = x_.size_bytes() + query_.size_bytes() + key_.size_bytes() + value_.size_bytes();
  bytes += rotations_.size_bytes() + query_numbers_.size() + partials_.size_bytes();
  for (const Inputs* inputs : {&hidden_in_, &attention_in_, &feed_forward_in_, &head_in_, &head_rest_in_}) {
    for (const Activations& encoded : inputs->encoded) bytes += encoded.size_bytes();
  }
  return bytes;
}

}  // namespace forebay
