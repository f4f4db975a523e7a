"""What a decoder looks like, whatever file it came from."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama-3 style frequency scaling (transformers: rope_type "llama3"), or plain "linear".

    kind: "linear" or "llama3"; factor > 0; the other three are used by "llama3" only.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_tokens: int = 8192


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Shape of one decoder-only transformer of the Llama, SmolLM2, Qwen2, Qwen3 or Mistral family."""

    architecture: str  # "llama", "qwen2", "qwen3", "mistral"
    vocabulary_size: int
    layers: int
    hidden_size: int
    intermediate_size: int
    query_heads: int
    kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    context_tokens: int
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None  # Mistral v0.1; refused at load unless >= context_tokens
    is_embedding_tied: bool = False
    has_qkv_bias: bool = False  # Qwen2
    has_qk_norm: bool = False  # Qwen3
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
