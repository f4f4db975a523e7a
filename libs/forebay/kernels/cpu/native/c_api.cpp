#include "c_api.h"

#include <exception>
#include <vector>

#include "convert.h"
#include "norm.h"
#include "peaks.h"
#include "rope.h"
#include "step.h"

using namespace forebay;

struct forebay_engine {
  forebay_engine(Model model, int thread_count) : step(std::move(model)), threads(thread_count) {}
  DecoderStep step;
  Threads threads;
  std::vector<Draw> draws;  // of the step at hand
};

namespace {

Linear to_linear(const forebay_linear& from) {
  return {from.tiles, from.bias, static_cast<Format>(from.format), from.outputs, from.inputs,
          from.has_wide_inputs != 0};
}

Layer to_layer(const forebay_layer& from) {
  return {to_linear(from.query), to_linear(from.key),  to_linear(from.value), to_linear(from.output),
          to_linear(from.gate),  to_linear(from.up),   to_linear(from.down),  from.attention_norm,
          from.query_norm,       from.key_norm,        from.feed_forward_norm};
}

Model to_model(const forebay_model& from) {
  Model model;
  model.hidden = from.hidden;
  model.intermediate = from.intermediate;
  model.query_heads = from.query_heads;
  model.vocabulary = from.vocabulary;
  model.kv = {from.block_tokens, from.kv_heads, from.head_dim};
  model.is_kv_float32 = from.is_kv_float32 != 0;
  model.norm_epsilon = from.norm_epsilon;
  model.inverse_frequencies = from.inverse_frequencies;
  model.final_norm = from.final_norm;
  model.embedding = to_linear(from.embedding);
  model.head = to_linear(from.head);
  for (int i = 0; i < from.layer_count; ++i) model.layers.push_back(to_layer(from.layers[i]));
  return model;
}

Draw to_draw(const forebay_draw& from) {
  return {from.is_greedy != 0,  from.point,          from.octaves_per_logit, from.least_octaves, from.top_p, from.top_k,
          from.penalty_count, from.penalty_tokens, from.penalty_losses,    from.repetition};
}

StepInput to_input(const forebay_step& from, const Draw* draws) {
  return {from.row_count,    from.token_ids,    from.slice_count,  from.slice_rows, from.slice_positions,
          from.block_tables, from.table_starts, from.sample_count, from.sample_rows, from.arena,
          from.block_stride_bytes, from.logits, from.logits_stride, draws, from.tokens, from.is_finite};
}

BlockLayout to_block_layout(const forebay_kv_layout& from) {
  return {static_cast<kv_numbers::Dtype>(from.dtype), static_cast<AxisOrder>(from.order), from.layers, from.kv_heads,
          from.head_dim, from.block_tokens};
}

template <class Numbers>
void attention(const float* queries, int query_count, const float* keys, const float* values, int position,
               const KvShape& shape, const std::int32_t* block_table, std::uint8_t* arena, float* y) {
  using Number = typename Numbers::Number;
  const std::ptrdiff_t stride = 2 * shape.head_numbers() * static_cast<std::ptrdiff_t>(sizeof(Number));
  const int head_dim = shape.head_dim;
  const auto convert = [&](const float* from, float scale, Number* to) {
    for (int i = 0; i < head_dim; i += lanes::kCount) {
      Numbers::store(to + i, lanes::multiply(lanes::load(from + i), lanes::broadcast(scale)));
    }
  };
  std::vector<Number> numbers(static_cast<std::size_t>(query_count * head_dim));
  for (int token = 0; token <= position; ++token) {
    Number* const block = reinterpret_cast<Number*>(arena + block_table[token / shape.block_tokens] * stride);
    convert(keys + token * head_dim, 1.0f, numbers.data());
    write_key(block, shape, token % shape.block_tokens, numbers.data());
    convert(values + token * head_dim, 1.0f, numbers.data());
    write_value(block + shape.value_offset(), shape, token % shape.block_tokens, numbers.data(), token == position);
  }
  std::vector<Query<Numbers>> list;
  for (int i = 0; i < query_count; ++i) {
    convert(queries + i * head_dim, query_scale<Numbers>(head_dim), numbers.data() + i * head_dim);
    list.push_back({numbers.data() + i * head_dim, position});
  }
  const Context<Numbers> context{arena, stride, block_table, 0, shape, position / shape.block_tokens};
  Partial total[kMaxQueries], later[kMaxQueries];
  attend_segment(context, list.data(), query_count, 0, total);
  for (int segment = 1; segment <= position / kSegmentTokens; ++segment) {
    attend_segment(context, list.data(), query_count, segment, later);
    for (int i = 0; i < query_count; ++i) fold<Numbers>(total[i], later[i], head_dim);
  }
  for (int i = 0; i < query_count; ++i) finish(total[i], head_dim, y + i * head_dim);
}

}  // namespace

int32_t forebay_abi_version(void) { return FOREBAY_ABI_VERSION; }

const char* forebay_instruction_set(void) {
#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
  return "avx512";
#elif defined(__AVX2__) && defined(__FMA__)
  return "avx2";
#else
  return "scalar";
#endif
}

forebay_engine* forebay_engine_create(const forebay_model* model, int32_t thread_count) {
  try {
    return new forebay_engine(to_model(*model), thread_count);
  } catch (const std::exception&) {
    return nullptr;
  }
}

void forebay_engine_destroy(forebay_engine* engine) { delete engine; }

int32_t forebay_engine_step(forebay_engine* engine, const forebay_step* step) {
  const int wanted = step->thread_count > 1 ? step->thread_count : 1;
  const int bounded = wanted < engine->threads.count() ? wanted : engine->threads.count();
  try {
    engine->draws.clear();
    for (int32_t i = 0; i < step->sample_count; ++i) engine->draws.push_back(to_draw(step->draws[i]));
    engine->step.prepare(to_input(*step, engine->draws.data()), bounded);
  } catch (const std::exception&) {
    return 1;
  }
  engine->threads.run(bounded, [engine](int thread) { engine->step.run(thread); });
  return 0;
}

int64_t forebay_engine_workspace_bytes(const forebay_engine* engine) {
  return static_cast<int64_t>(engine->step.workspace_bytes());
}

void forebay_engine_phase_seconds(forebay_engine* engine, double* seconds) {
  engine->step.is_timed = true;
  for (double& phase : engine->step.phase_seconds()) {
    *seconds++ = phase;
    phase = 0.0;
  }
}

double forebay_arithmetic_peak(int32_t arithmetic, int32_t thread_count, double seconds) {
  return arithmetic_peak(static_cast<Arithmetic>(arithmetic), thread_count, seconds);
}

double forebay_read_peak(const uint8_t* bytes, int64_t size, int32_t thread_count) {
  return read_peak(bytes, static_cast<std::size_t>(size), thread_count);
}

int32_t forebay_convert(const forebay_conversion* from) {
  try {
    std::vector<BlockLayout> sources;
    for (int i = 0; i < from->source_count; ++i) sources.push_back(to_block_layout(from->sources[i]));
    std::vector<HeadRead> reads;
    for (int i = 0; i < from->head_read_count; ++i) {
      const forebay_head_read& read = from->head_reads[i];
      reads.push_back({read.source, read.first_source_head, read.first_target_head, read.head_count});
    }
    convert({sources.data(), to_block_layout(*from->target), reads.data(), from->head_read_count, from->token_count,
             from->source_blocks, from->target_blocks});
  } catch (const std::exception&) {
    return 1;
  }
  return 0;
}

void forebay_linear_rows(const forebay_linear* linear, const float* x, int32_t row_count, int64_t x_stride, float* y,
                         int64_t y_stride) {
  const Linear layer = to_linear(*linear);
  Panels panels;
  panels.cut(row_count);
  Activations inputs;
  inputs.reserve(layer.encoding(), row_count, layer.inputs);
  for (int row = 0; row < row_count; ++row) {
    for (int group = 0; group < layer.groups(); ++group) {
      float plain[kGroup] = {};
      for (int i = 0; i < kGroup && group * kGroup + i < layer.inputs; ++i) {
        plain[i] = x[row * x_stride + group * kGroup + i];
      }
      inputs.encode(panels.holding(row), row, group, lanes::load(plain), lanes::load(plain + lanes::kCount));
    }
  }
  for (int tile = 0; tile < layer.tile_count(); ++tile) {
    for (const Panel& panel : panels.list) {
      float* const first = y + panel.first_row * y_stride + tile * kTileOutputs;
      linear_tile(layer, tile, inputs, panel, {first, static_cast<std::ptrdiff_t>(y_stride), false});
    }
  }
}

void forebay_unpack_row(const forebay_linear* linear, int32_t output, float* to) {
  unpack_row(to_linear(*linear), output, to);
}

void forebay_rms_norm(const float* x, const float* weight, int32_t count, float epsilon, float* y) {
  const float inverse = inverse_rms(x, count, epsilon);
  for (int i = 0; i < count; i += lanes::kCount) lanes::store(y + i, normed(x, weight, inverse, i));
}

void forebay_rope(float* x, int32_t position, const float* inverse_frequencies, int32_t head_dim) {
  std::vector<float> rotation(static_cast<std::size_t>(head_dim));
  rotation_of(position, inverse_frequencies, head_dim / 2, rotation.data());
  rotate(x, rotation.data(), head_dim / 2);
}

void forebay_silu(const float* x, int32_t count, float* y) {
  for (int i = 0; i < count; i += lanes::kCount) lanes::store(y + i, silu(lanes::load(x + i)));
}

int32_t forebay_attention(const float* queries, int32_t query_count, const float* keys, const float* values,
                          int32_t position, int32_t head_dim, int32_t block_tokens, int32_t is_kv_float32,
                          const int32_t* block_table, uint8_t* arena, float* y) {
  if (query_count < 1 || query_count > kMaxQueries || head_dim > kMaxHeadDim) return 1;
  const KvShape shape{block_tokens, 1, head_dim};
  const auto compute = is_kv_float32 ? attention<F32Numbers> : attention<Bf16Numbers>;
  compute(queries, query_count, keys, values, position, shape, block_table, arena, y);
  return 0;
}

int32_t forebay_choose(float* logits, int32_t vocabulary, const forebay_draw* draw, int32_t* token) {
  try {
    Sampler sampler;
    const Draw how = to_draw(*draw);
    sampler.reserve(vocabulary);
    sampler.reserve_for(how);
    return sampler.choose(logits, how, *token) ? 0 : 1;
  } catch (const std::exception&) {
    return 2;
  }
}
