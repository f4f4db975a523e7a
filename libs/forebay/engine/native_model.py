"""Packed weights and a decoder's configuration as the structs that the native library reads. Computes nothing."""

import ctypes

import numpy as np

from forebay.engine.rope import rope_frequencies
from forebay.kernels.cpu.library import LayerStruct, LinearStruct, ModelStruct
from forebay.kernels.cpu.packed_file import PackedFile
from forebay.kv.layout import KvDtype, KvLayout
from forebay.models.config import DecoderConfig

_MATRICES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_NORMS = {
    "attention_norm": "input_layernorm.weight",
    "query_norm": "self_attn.q_norm.weight",
    "key_norm": "self_attn.k_norm.weight",
    "feed_forward_norm": "post_attention_layernorm.weight",
}


class NativeModel:
    """The structs, and all that their pointers point to: keep it as long as they are used."""

    def __init__(self, packed: PackedFile, config: DecoderConfig, layout: KvLayout, activation_bits: int = 16) -> None:
        """Args: activation_bits: 8 or 16, of inputs to matrices in blocks of integers.

        The head always gets 16: it is where rounding costs most accuracy, and few rows reach it.
        """
        self._packed = packed
        self._has_wide_inputs = activation_bits == 16
        self._frequencies = np.ascontiguousarray(rope_frequencies(config))
        self._layers = (LayerStruct * config.layers)(*(self._layer(index) for index in range(config.layers)))
        self.struct = ModelStruct(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            query_heads=config.query_heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            vocabulary=config.vocabulary_size,
            layer_count=config.layers,
            block_tokens=layout.block_tokens,
            is_kv_float32=layout.dtype is KvDtype.FLOAT32,
            norm_epsilon=config.rms_norm_eps,
            inverse_frequencies=self._frequencies.ctypes.data,
            final_norm=packed.address("model.norm.weight"),
            embedding=self._linear("model.embed_tokens"),
            head=self._linear("model.embed_tokens" if config.is_embedding_tied else "lm_head", has_wide_inputs=True),
            layers=ctypes.cast(self._layers, ctypes.POINTER(LayerStruct)),
        )

    def _layer(self, index: int) -> LayerStruct:
        prefix = f"model.layers.{index}"
        matrices = {field: self._linear(f"{prefix}.{name}") for field, name in _MATRICES.items()}
        norms = {field: self._address(f"{prefix}.{name}") for field, name in _NORMS.items()}
        return LayerStruct(**matrices, **norms)

    def _linear(self, name: str, has_wide_inputs: bool | None = None) -> LinearStruct:
        spec = self._packed.tensors[f"{name}.weight"].spec
        return LinearStruct(
            tiles=self._packed.address(f"{name}.weight"),
            bias=self._address(f"{name}.bias"),
            format=spec.tile_format,
            outputs=spec.output_count,
            inputs=spec.input_count,
            has_wide_inputs=self._has_wide_inputs if has_wide_inputs is None else has_wide_inputs,
        )

    def _address(self, name: str) -> int | None:
        return self._packed.address(name) if name in self._packed.tensors else None
