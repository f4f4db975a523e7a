// The parts of a step that are linear layers, and the norms and encodings before them.
#include "step.h"

#include "norm.h"

namespace forebay {

void DecoderStep::Inputs::reserve(std::initializer_list<const Linear*> readers, int row_count, int inputs) {
  for (const Linear* reader : readers) {
    const Encoding encoding = reader->encoding();
    is_wanted[static_cast<std::size_t>(encoding)] = true;
    encoded[static_cast<std::size_t>(encoding)].reserve(encoding, row_count, inputs);
  }
}

void DecoderStep::Inputs::encode(const Panel& panel, int row, int group, lanes::F32 first, lanes::F32 second) {
  for (std::size_t i = 0; i < kEncodings; ++i) {
    if (is_wanted[i]) encoded[i].encode(panel, row, group, first, second);
  }
}

// Groups first_group .. end_group - 1 of one row, normed and encoded.
void DecoderStep::norm_row(const float* x, const float* weight, const Place& place, Inputs& to) {
  const float inverse = inverse_rms(x, model_.hidden, model_.norm_epsilon);
  for (int group = place.first_group; group < place.end_group; ++group) {
    const int first = group * kGroup;
    const lanes::F32 second = normed(x, weight, inverse, first + lanes::kCount);
    to.encode(place.panel, place.row, group, normed(x, weight, inverse, first), second);
  }
}

void DecoderStep::norm(const float* weight, Inputs& to) {
  for_each_place(groups_of(model_.hidden), [&](const Place& place) {
    norm_row(x_.data() + product(place.row, hidden_stride_), weight, place, to);
  });
}

// x += linear(from)
void DecoderStep::add_projection(const Linear& linear, Inputs& from) {
  Activations& inputs = from.of(linear);
  for_each(linear.tile_count(), chunk_of(linear.tile_count()), [&](int tile) {
    for (const Panel& panel : panels_.list) {
      float* const first = x_.data() + product(panel.first_row, hidden_stride_) + tile * kTileOutputs;
      linear_tile(linear, tile, inputs, panel, {first, hidden_stride_, true});
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
                  {to + panel.first_row * stride + tile * kTileOutputs, stride, false});
    }
  });
}

// silu(gate) * up for 32 outputs at a time, encoded on the spot: that is one group of the next layer's input.
void DecoderStep::gate_up(const Layer& layer) {
  const int count = groups_of(model_.intermediate), tiles = layer.gate.tile_count();
  for_each(count, chunk_of(count), [&](int group) {
    alignas(64) float gate[kMaxPanelWidth][kGroup] = {}, up[kMaxPanelWidth][kGroup] = {};
    for (const Panel& panel : panels_.list) {
      const auto project = [&](const Linear& linear, float* to) {
        for (int half = 0; half < 2 && 2 * group + half < tiles; ++half) {
          float* const first = to + half * kTileOutputs;
          linear_tile(linear, 2 * group + half, hidden_in_.of(linear), panel, {first, kGroup, false, nullptr, Fetch::kFar});
        }
      };
      project(layer.gate, gate[0]);
      project(layer.up, up[0]);
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

// The final norm of the rows that are sampled.
void DecoderStep::norm_samples() {
  for_each(input_.sample_count, 1, [&](int sample) {
    const float* const x = x_.data() + product(input_.sample_rows[sample], hidden_stride_);
    const Place place{head_panels_.holding(sample), sample, 0, groups_of(model_.hidden)};
    norm_row(x, model_.final_norm, place, head_in_);
  });
}

void DecoderStep::head() {
  for_each(model_.head.tile_count(), chunk_of(model_.head.tile_count()), [&](int tile) {
    for (const Panel& panel : head_panels_.list) {
      float* const first = input_.logits + panel.first_row * input_.logits_stride + tile * kTileOutputs;
      linear_tile(model_.head, tile, head_in_.of(model_.head), panel, {first, input_.logits_stride, false});
    }
  });
}

void DecoderStep::choose(int sample) {
  float* const logits = input_.logits + sample * input_.logits_stride;
  Sampler& sampler = samplers_[static_cast<std::size_t>(this_thread)];
  input_.is_finite[sample] = sampler.choose(logits, input_.draws[sample], input_.tokens[sample]) ? 1 : 0;
}

}  // namespace forebay
