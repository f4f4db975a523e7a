"""What every decoder configuration must satisfy, whatever file it came from."""

from pathlib import Path

from forebay.models.config import DecoderConfig
from forebay.models.refusals import damaged, unsupported


def check_config(path: Path, config: DecoderConfig) -> DecoderConfig:
    """The configuration itself.

    Raises:
        StartError: the numbers do not make a decoder, or make one that Forebay cannot run.
    """
    for name in (
        "vocabulary_size",
        "layers",
        "hidden_size",
        "intermediate_size",
        "query_heads",
        "kv_heads",
        "head_dim",
    ):
        if getattr(config, name) <= 0:
            raise damaged(path, f"{name} is {getattr(config, name)}")
    if config.context_tokens <= 0:
        raise damaged(path, f"context_tokens is {config.context_tokens}")
    if config.query_heads % config.kv_heads:
        raise damaged(path, f"{config.query_heads} query heads are not a multiple of {config.kv_heads} kv heads")
    if config.head_dim % 2:
        raise damaged(path, f"head_dim {config.head_dim} is odd, which rotary embedding cannot use")
    if not (config.rms_norm_eps > 0 and config.rope_theta > 0):
        raise damaged(path, f"rms_norm_eps {config.rms_norm_eps} or rope_theta {config.rope_theta} is not positive")
    if config.sliding_window is not None and config.sliding_window < config.context_tokens:
        raise unsupported(path, f"a sliding window of {config.sliding_window} tokens", ["full attention"])
    for token_id in (*config.eos_token_ids, *(() if config.bos_token_id is None else (config.bos_token_id,))):
        if not 0 <= token_id < config.vocabulary_size:
            raise damaged(
                path, f"special token id {token_id} is not below the vocabulary size {config.vocabulary_size}"
            )
    return config
