#include "step.h"

#include <chrono>

#include "rope.h"

namespace forebay {
namespace {

constexpr int kSpanRows = 16;
constexpr int kSplitBelow = 16;  // (span, kv head) pairs
constexpr int kChunksPerThread = 4;

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

void DecoderStep::prepare(const StepInput& input, int thread_count) {
  input_ = input;
  thread_count_ = thread_count;
  meeting_.open(thread_count);
  panels_.cut(input.row_count);
  head_panels_.cut(input.sample_count);
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
  prepare_samplers();
  cut_spans();
}

void DecoderStep::prepare_samplers() {
  while (static_cast<int>(samplers_.size()) < thread_count_) samplers_.emplace_back();
  for (Sampler& sampler : samplers_) {
    sampler.reserve(model_.vocabulary);
    for (int sample = 0; sample < input_.sample_count; ++sample) sampler.reserve_for(input_.draws[sample]);
  }
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
  is_split_ = false;
  for (const Span& span : spans_) is_split_ = is_split_ || span.position + span.row_count > kSegmentTokens;
  is_split_ = is_split_ && static_cast<int>(spans_.size()) * model_.kv.kv_heads < kSplitBelow;
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

thread_local int DecoderStep::this_thread = 0;

void DecoderStep::run(int thread) {
  this_thread = thread;
  if (is_timed && thread == 0) phase_start_s_ = now_s();
  const int layer_count = static_cast<int>(model_.layers.size());
  embed();
  meet_and_norm(kEmbed, thread, model_.layers.front().attention_norm);
  for (int index = 0; index < layer_count; ++index) {
    const Layer& layer = model_.layers[static_cast<std::size_t>(index)];
    project_qkv(layer);
    meet(kQkv, thread);
    model_.is_kv_float32 ? attention<F32Numbers>(layer, index, thread) : attention<Bf16Numbers>(layer, index, thread);
    meet_and(kAttention, thread, kJoin, [this] { join_and_encode(); });
    add_projection(layer.output, attention_in_);
    meet_and_norm(kOutput, thread, layer.feed_forward_norm);
    gate_up(layer);
    meet(kGateUp, thread);
    add_projection(layer.down, feed_forward_in_);
    if (index + 1 < layer_count) {
      meet_and_norm(kDown, thread, model_.layers[static_cast<std::size_t>(index + 1)].attention_norm);
    } else {
      meet_and(kDown, thread, kNorm, [this] { norm_samples(); });
    }
  }
  if (input_.sample_count == 0) return;
  head();
  meet(kHead, thread);
  for_each(input_.sample_count, 1, [this](int sample) { choose(sample); });
  meet(kScan, thread);
}

void DecoderStep::count_time(Phase finished, int thread) {
  if (!is_timed || thread != 0) return;
  const double now = now_s();
  phase_seconds_[finished] += now - phase_start_s_;
  phase_start_s_ = now;
}

void DecoderStep::meet(Phase finished, int thread) {
  meeting_.wait(thread, [] {});
  count_time(finished, thread);
}

void DecoderStep::meet_and_norm(Phase finished, int thread, const float* weight) {
  meet_and(finished, thread, kNorm, [this, weight] { norm(weight, hidden_in_); });
}

int DecoderStep::chunk_of(int count) const {
  const int chunks = thread_count_ * kChunksPerThread;
  return count < chunks ? 1 : count / chunks;
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

std::size_t DecoderStep::workspace_bytes() const {
  std::size_t bytes = x_.size_bytes() + query_.size_bytes() + key_.size_bytes() + value_.size_bytes();
  bytes += rotations_.size_bytes() + query_numbers_.size() + partials_.size_bytes();
  for (const Inputs* inputs : {&hidden_in_, &attention_in_, &feed_forward_in_, &head_in_}) {
    for (const Activations& encoded : inputs->encoded) bytes += encoded.size_bytes();
  }
  for (const Sampler& sampler : samplers_) bytes += sampler.size_bytes();
  return bytes;
}

}  // namespace forebay
