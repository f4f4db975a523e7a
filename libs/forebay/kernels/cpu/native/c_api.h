// The library's plain C interface, called through ctypes. Structs are mirrored field by field in library.py.
//
// An engine is used by one thread at a time. No function throws or prints. Pointers given at creation (weights,
// frequencies) must outlive the engine; those given to a step must outlive the step.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FOREBAY_ABI_VERSION 4

typedef struct {
  const uint8_t* tiles;  // layout: linear.h
  const float* bias;     // [outputs padded to 16] or null
  int32_t format;        // forebay::Format
  int32_t outputs;
  int32_t inputs;
  int32_t has_wide_inputs;  // of blocks of integers: activations are rounded to 16 bits, not to 8
} forebay_linear;

typedef struct {
  forebay_linear query, key, value, output, gate, up, down;
  const float* attention_norm;     // [hidden padded to 32]
  const float* query_norm;         // [head_dim] or null
  const float* key_norm;           // [head_dim] or null
  const float* feed_forward_norm;  // [hidden padded to 32]
} forebay_layer;

typedef struct {
  int32_t hidden, intermediate, query_heads, kv_heads, head_dim, vocabulary, layer_count, block_tokens;
  int32_t is_kv_float32;
  float norm_epsilon;
  const float* inverse_frequencies;  // [head_dim / 2]
  const float* final_norm;           // [hidden padded to 32]
  forebay_linear embedding, head;
  const forebay_layer* layers;
} forebay_model;

// How one token is chosen: forebay::Draw.
typedef struct {
  uint64_t point;
  double octaves_per_logit, least_octaves, top_p;
  int32_t is_greedy, top_k, penalty_count;
  float repetition;
  const int32_t* penalty_tokens;
  const float* penalty_losses;
} forebay_draw;

typedef struct {
  int32_t row_count, slice_count, sample_count, thread_count;
  const int32_t *token_ids, *slice_rows, *slice_positions, *block_tables, *table_starts, *sample_rows;
  uint8_t* arena;
  int64_t block_stride_bytes, block_count, logits_stride;
  float* logits;
  const forebay_draw* draws;
  int32_t* tokens;
  uint8_t* is_finite;
} forebay_step;

// A KV layout; dtype: forebay::kv_numbers::Dtype, order: forebay::AxisOrder.
typedef struct {
  int32_t dtype, order, layers, kv_heads, head_dim, block_tokens;
} forebay_kv_layout;

typedef struct {
  int32_t source, first_source_head, first_target_head, head_count;
} forebay_head_read;

// See forebay::Conversion.
typedef struct {
  const forebay_kv_layout *sources, *target;
  const forebay_head_read* head_reads;
  int32_t source_count, head_read_count, token_count;
  const uint8_t* const* source_blocks;
  uint8_t* const* target_blocks;
} forebay_conversion;

typedef struct forebay_engine forebay_engine;

int32_t forebay_abi_version(void);
// "avx512", "avx2" or "scalar": what this library was compiled for.
const char* forebay_instruction_set(void);

// Null when memory or threads run out. thread_count >= 1 includes the calling thread.
forebay_engine* forebay_engine_create(const forebay_model* model, int32_t thread_count);
void forebay_engine_destroy(forebay_engine* engine);
// 0: done. 1: no memory. thread_count is brought between 1 and that of the engine.
int32_t forebay_engine_step(forebay_engine* engine, const forebay_step* step);
int64_t forebay_engine_workspace_bytes(const forebay_engine* engine);
// Seconds of the first thread in each phase since the last call, [11] in the order of step.h; turns the clocks on.
void forebay_engine_phase_seconds(forebay_engine* engine, double* seconds);

// Multiplications and additions per second of so many threads; arithmetic: forebay::Arithmetic.
double forebay_arithmetic_peak(int32_t arithmetic, int32_t thread_count, double seconds);
// Bytes per second that so many threads read from memory.
double forebay_read_peak(const uint8_t* bytes, int64_t size, int32_t thread_count);

// Converts a run of KV blocks. The caller has checked that the layouts can be converted. 0: done. 1: no memory.
int32_t forebay_convert(const forebay_conversion* conversion);

// Single kernels, for tests. x, y: rows of floats.
// What a step does with a row of logits, [vocabulary padded to 16]. 0: `token` is chosen. 1: a logit is not finite.
// 2: no memory.
int32_t forebay_choose(float* logits, int32_t vocabulary, const forebay_draw* draw, int32_t* token);
void forebay_linear_rows(const forebay_linear* linear, const float* x, int32_t row_count, int64_t x_stride, float* y,
                         int64_t y_stride);
void forebay_unpack_row(const forebay_linear* linear, int32_t output, float* to);
void forebay_rms_norm(const float* x, const float* weight, int32_t count, float epsilon, float* y);
void forebay_rope(float* x, int32_t position, const float* inverse_frequencies, int32_t head_dim);
void forebay_silu(const float* x, int32_t count, float* y);
// One kv head of a one-layer arena; queries: [query_count][head_dim] unscaled, all at `position`; keys and values at
// positions 0 .. position are written first from [position + 1][head_dim]; y: [query_count][head_dim].
int32_t forebay_attention(const float* queries, int32_t query_count, const float* keys, const float* values,
                          int32_t position, int32_t head_dim, int32_t block_tokens, int32_t is_kv_float32,
                          const int32_t* block_table, uint8_t* arena, float* y);

#ifdef __cplusplus
}
#endif
