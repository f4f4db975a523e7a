// One step of a decoder: every new token of every slice through all layers, once. Rows are tokens, in order of
// slices.
//
// All threads run the same phases and meet after each. A phase's items are independent, so who computes which does
// not matter; each item is computed in one fixed order (see linear.h, attention.h), so nothing depends on the batch
// or on the number of threads.
#pragma once

#include <array>
#include <deque>

#include "attention.h"
#include "model.h"
#include "sampler.h"
#include "threads.h"

namespace forebay {

// What one step computes. Pointers are the caller's and live as long as the step.
struct StepInput {
  int row_count;
  const std::int32_t* token_ids;         // [row_count]
  int slice_count;
  const std::int32_t* slice_rows;        // [slice_count] rows of each slice
  const std::int32_t* slice_positions;   // [slice_count] position of each slice's first row
  const std::int32_t* block_tables;      // all tables, one after the other
  const std::int32_t* table_starts;      // [slice_count] where each slice's table starts
  int sample_count;
  const std::int32_t* sample_rows;       // [sample_count] rows whose logits are wanted
  std::uint8_t* arena;
  std::ptrdiff_t block_stride_bytes;
  float* logits;                         // [sample_count][logits_stride]
  std::ptrdiff_t logits_stride;          // >= vocabulary padded to 16
  const Draw* draws;                     // [sample_count] how each token is chosen
  std::int32_t* tokens;                  // [sample_count] those chosen
  std::uint8_t* is_finite;               // [sample_count] 0 when a logit is NaN or infinite, and no token is chosen
};

// Where the time of one thread went, summed over steps.
enum Phase : int { kEmbed, kNorm, kQkv, kRope, kAttention, kJoin, kOutput, kGateUp, kDown, kHead, kScan, kPhases };

class DecoderStep {
 public:
  explicit DecoderStep(Model model) : model_(std::move(model)) {}

  // Makes room, and cuts rows into panels and spans; called before run(), by one thread.
  void prepare(const StepInput& input, int thread_count);
  // Computes this thread's part.
  void run(int thread);

  const Model& model() const { return model_; }
  std::size_t workspace_bytes() const;
  std::array<double, kPhases>& phase_seconds() { return phase_seconds_; }
  bool is_timed = false;

 private:
  // Rows of one slice within one block, at most 16.
  struct Span {
    int first_row, row_count, position, slice;
    bool is_slice_end;
    int first_partial;  // of its partial results, when attention is split over segments
  };
  // The same rows in each encoding that some linear layer wants.
  struct Inputs {
    std::array<Activations, kEncodings> encoded;
    std::array<bool, kEncodings> is_wanted{};

    void reserve(std::initializer_list<const Linear*> readers, int row_count, int inputs);
    void encode(const Panel& panel, int row, int group, lanes::F32 first, lanes::F32 second);
    Activations& of(const Linear& linear) { return encoded[static_cast<std::size_t>(linear.encoding())]; }
  };

  // Some groups of one row.
  struct Place {
    const Panel& panel;
    int row, first_group, end_group;
  };
  static thread_local int this_thread;  // its number in the step that it computes
  static constexpr int kAloneRows = 2;
  static constexpr int kPartsBelow = 8;  // panels
  static constexpr int kParts = 4;

  void prepare_samplers();
  void cut_spans();
  // Computes items 0 .. count - 1 together with the other threads, `chunk` at a time.
  template <class Compute>
  void for_each(int count, int chunk, Compute compute) {
    for (Items some; (some = meeting_.take(this_thread, count, chunk)).first < some.end;) {
      for (int item = some.first; item < some.end; ++item) compute(item);
    }
  }
  template <class Compute>
  void for_each_place(int groups, Compute compute);
  int chunk_of(int count) const;

  void embed();
  void norm(const float* weight, Inputs& to);
  void norm_row(const float* x, const float* weight, const Place& place, Inputs& to);
  void project_qkv(const Layer& layer);
  template <class Numbers>
  void attention(const Layer& layer, int index, int thread);
  template <class Numbers>
  void rope_and_write(const Span& span, int kv_head, const Layer& layer, int index);
  template <class Numbers>
  void rope_head(const Span& span, int row, int kv_head, const Layer& layer, int index);
  template <class Numbers>
  void attend_segments(int index);
  template <class Numbers>
  void attend_whole(const Span& span, int kv_head, int index);
  template <class Numbers>
  Context<Numbers> context_of(const Span& span, int kv_head, int index) const;
  template <class Numbers>
  Query<Numbers> query_of(const Span& span, int kv_head, int i);
  template <class Numbers>
  void join(const Span& span);
  void join_and_encode();
  void encode_attention(const Place& place);
  void add_projection(const Linear& linear, Inputs& from);
  void gate_up(const Layer& layer);
  void norm_samples();
  void head();
  void choose(int sample);
  void count_time(Phase finished, int thread);
  void meet(Phase finished, int thread);
  // Ends a phase and does a small one: with few rows the thread that comes last does it before the others go on,
  // since meeting once more would take longer than the work.
  template <class Compute>
  void meet_and(Phase finished, int thread, Phase next, Compute compute) {
    if (input_.row_count <= kAloneRows) {
      meeting_.wait(thread, compute);
      return count_time(finished, thread);
    }
    meet(finished, thread);
    compute();
    meet(next, thread);
  }
  void meet_and_norm(Phase finished, int thread, const float* weight);

  Model model_;
  StepInput input_{};
  int thread_count_ = 1;
  Meeting meeting_;
  Panels panels_, head_panels_;
  std::vector<Span> spans_;
  bool is_split_ = false;        // attention: over segments too, because there are few (span, kv head) pairs
  std::vector<std::array<int, 3>> segment_items_;  // (span, kv head, segment) when split
  int hidden_stride_ = 0;
  AlignedArray<float> x_, query_, key_, value_, rotations_;
  AlignedBytes query_numbers_;   // [row][query_width] in the numbers of the KV, scaled
  AlignedArray<Partial> partials_;
  Inputs hidden_in_, attention_in_, feed_forward_in_, head_in_;
  std::deque<Sampler> samplers_;  // of each thread
  std::array<double, kPhases> phase_seconds_{};
  double phase_start_s_ = 0.0;
};

// Goes by panels, or by some groups of them when there are few: rows of one panel share cache lines, groups do not.
template <class Compute>
void DecoderStep::for_each_place(int groups, Compute compute) {
  const int panel_count = static_cast<int>(panels_.list.size());
  const int parts = panel_count < kPartsBelow && input_.row_count > 1 ? kParts : 1;
  for_each(panel_count * parts, 1, [&](int item) {
    const Panel& panel = panels_.list[static_cast<std::size_t>(item / parts)];
    const int part = item % parts;
    for (int row = panel.first_row; row < panel.first_row + panel.width; ++row) {
      compute(Place{panel, row, groups * part / parts, groups * (part + 1) / parts});
    }
  });
}

}  // namespace forebay
