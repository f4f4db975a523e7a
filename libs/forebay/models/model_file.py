"""One model on disk, whatever its format: configuration, digest, weights under Hugging Face names, tokenizer source.

Knows nothing of where models come from (`default_model`) and nothing of what is computed with them.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forebay.errors import StartError
from forebay.models.config import DecoderConfig
from forebay.models.config_from_gguf import config_from_gguf
from forebay.models.config_from_huggingface import config_from_huggingface
from forebay.models.decoder_tensors import gguf_name, tensor_shapes
from forebay.models.gguf import GgufFile
from forebay.models.gguf_dequantize import dequantize
from forebay.models.gguf_metadata import GgufMetadata
from forebay.models.gguf_types import GgufTensorType
from forebay.models.json_file import read_json
from forebay.models.model_digest import model_digest
from forebay.models.refusals import damaged, unsupported
from forebay.models.safetensors_folder import SafetensorsFolder

_QUANTIZATION = re.compile(r"[.\-_](I?Q\d\w*|B?F16|F32|FP16|FP32|MXFP4)$", re.IGNORECASE)
_INTERLEAVED = (".q_proj.weight", ".k_proj.weight")  # what llama.cpp's converter permutes for its llama architecture
_WITHOUT_WEIGHTS = ("rope_freqs.weight",)  # part of the configuration
_DERIVED = ("lm_head.weight", "rotary_emb.inv_freq")  # tied, or computed: old checkpoints carry them all the same


class ModelFile(ABC):
    """A model on disk, checked: every tensor that the configuration needs is there and has its shape."""

    path: Path
    name: str  # short name under which it is served
    config: DecoderConfig

    @property
    @abstractmethod
    def tokenizer_source(self) -> GgufMetadata | Path:
        """The metadata with the vocabulary, or the path of tokenizer.json, which may be missing."""

    @property
    @abstractmethod
    def chat_template(self) -> str | None:
        """The model's Jinja template, if it has one."""

    @abstractmethod
    def read_tensor(self, name: str) -> NDArray[np.float32]:
        """One tensor, owned by the caller; rows and columns in Hugging Face order, shape as `tensor_shapes` says.

        Raises:
            StartError: the tensor's number format is not supported.
        """

    @abstractmethod
    def _digested_paths(self) -> list[Path]:
        """The files that decide what the model computes."""

    @cached_property
    def digest(self) -> str:
        """xxh3-128 of the weights' and the configuration's bytes: 32 hex digits. Equal digests, equal KV."""
        return model_digest(self._digested_paths())

    def tensor_names(self) -> list[str]:
        """Hugging Face names ("model.layers.0.self_attn.q_proj.weight"); lm_head only where it is not tied."""
        return list(tensor_shapes(self.config))

    def _check_tensors(self, shapes: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
        for name, shape in expected.items():
            if name not in shapes:
                raise damaged(self.path, f"tensor {name} is missing")
            if shapes[name] != shape:
                raise damaged(self.path, f"tensor {name} has shape {shapes[name]} instead of {shape}")

    def _refuse_unknown(self, names: Iterable[str]) -> None:
        # A tensor that nobody reads, such as a bias, would make wrong logits without a word.
        if name := next(iter(names), None):
            raise unsupported(
                self.path, f"tensor {name}", [f"the tensors of a plain {self.config.architecture} decoder"]
            )


class GgufModel(ModelFile):
    """A model in one GGUF file."""

    def __init__(self, path: Path) -> None:
        """Reads and checks everything but the weights.

        Raises:
            StartError: the file is damaged or holds a model that is not supported.
        """
        self.path = path
        self.name = _QUANTIZATION.sub("", path.name.removesuffix(".gguf"))
        self._file = GgufFile(path)
        self.config = config_from_gguf(self._file)
        expected = {gguf_name(name): shape for name, shape in tensor_shapes(self.config).items()}
        self._check_tensors({name: tensor.shape for name, tensor in self._file.tensors.items()}, expected)
        self._refuse_unknown(self._file.tensors.keys() - expected.keys() - set(_WITHOUT_WEIGHTS))

    @property
    def tokenizer_source(self) -> GgufMetadata:
        """The metadata with the vocabulary."""
        return self._file.metadata

    @property
    def chat_template(self) -> str | None:
        """The template in the metadata."""
        return self._file.metadata.get("tokenizer.chat_template", str)

    def read_tensor(self, name: str) -> NDArray[np.float32]:
        """As ModelFile.read_tensor."""
        tensor = self._file.tensors[gguf_name(name)]
        return dequantize(self.read_rows(name), tensor.type, tensor.shape)

    def stored_type(self, name: str) -> GgufTensorType:
        """The number format of one tensor in the file."""
        return self._file.tensors[gguf_name(name)].type

    def read_rows(self, name: str) -> NDArray[np.uint8]:
        """A matrix as it is in the file, uint8 [outputs, bytes of a row]; a vector is one row. Not to be written to.

        Query and key rows that llama.cpp interleaved are put back in Hugging Face order.
        """
        tensor = self._file.tensors[gguf_name(name)]
        row_count = tensor.shape[0] if len(tensor.shape) > 1 else 1
        rows = self._file.read_packed(tensor.name).reshape(row_count, -1)
        if self.config.architecture != "llama" or not name.endswith(_INTERLEAVED):
            return rows
        return rows.reshape(-1, self.config.head_dim // 2, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)

    def _digested_paths(self) -> list[Path]:
        return [self.path]


class HuggingFaceModel(ModelFile):
    """A model in a Hugging Face folder with safetensors."""

    def __init__(self, folder: Path) -> None:
        """Reads and checks everything but the weights.

        Raises:
            StartError: a file is missing or damaged, or the model is not supported.
        """
        self.path = folder
        self.name = folder.resolve().name
        self.config = config_from_huggingface(folder)
        self._weights = SafetensorsFolder(folder)
        expected = tensor_shapes(self.config)
        self._check_tensors({name: tensor.shape for name, tensor in self._weights.tensors.items()}, expected)
        self._refuse_unknown(
            name for name in self._weights.tensors.keys() - expected.keys() if not name.endswith(_DERIVED)
        )

    @property
    def tokenizer_source(self) -> Path:
        """Path of tokenizer.json, which may be missing."""
        return self.path / "tokenizer.json"

    @property
    def chat_template(self) -> str | None:
        """chat_template.jinja, or what tokenizer_config.json says; of several templates the one named "default"."""
        if (self.path / "chat_template.jinja").is_file():
            return (self.path / "chat_template.jinja").read_text(encoding="utf-8")
        if not (self.path / "tokenizer_config.json").is_file():
            return None
        template = read_json(self.path / "tokenizer_config.json").values.get("chat_template")
        if isinstance(template, list):
            named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
            template = named.get("default")
        return template if isinstance(template, str) else None

    def read_tensor(self, name: str) -> NDArray[np.float32]:
        """As ModelFile.read_tensor."""
        return self._weights.read_tensor(name)

    def _digested_paths(self) -> list[Path]:
        return [self.path / "config.json", *self._weights.weight_paths]


def open_model(path: Path) -> ModelFile:
    """Opens a GGUF file or a Hugging Face folder; the weights are read later, one by one.

    Raises:
        StartError: the path is missing, or is no model that Forebay can serve.
    """
    if path.is_dir():
        return HuggingFaceModel(path)
    if path.exists():
        return GgufModel(path)
    raise StartError(f"{path}: no such model; give a GGUF file or a Hugging Face folder")
