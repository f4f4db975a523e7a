"""Which engine a chip class gets, and what is said where it cannot be had."""

from pathlib import Path

import pytest

from forebay.chips import chip_class_named
from forebay.chips.kv_layout import layout_for
from forebay.engine.kv_memory import private_memory
from forebay.engine.load import load_engine
from forebay.engine.native_engine import NativeEngine
from forebay.engine.native_load import native_refusal
from forebay.engine.torch_engine import TorchEngine
from forebay.engine.types import Engine
from forebay.errors import StartError
from forebay.kernels.cpu import library
from forebay.models.model_file import open_model
from forebay.testing.tiny_models import TINY_LLAMA, write_tiny_model


def load(folder: Path, name: str) -> Engine:
    model, chip_class = open_model(write_tiny_model(folder)), chip_class_named(name)
    return load_engine(model, chip_class, private_memory(layout_for(model.config, chip_class), 4), threads=2)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(library, "_loaded", {})


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("cpu-compute", NativeEngine),
        ("cpu-bandwidth", NativeEngine),
        ("cpu-bandwidth-w8", NativeEngine),
        ("cpu-bf16", TorchEngine),
        ("cpu-f32", TorchEngine),
        ("cpu-f32-kv8", TorchEngine),
    ],
)
def test_a_chip_class_names_its_kernels(tmp_path: Path, name: str, engine: type) -> None:
    assert isinstance(load(tmp_path / "tiny", name), engine)


def test_16_bit_weights_take_half_the_bytes_in_a_class_with_8(tmp_path: Path) -> None:
    whole, halved = (load(tmp_path / "tiny", name) for name in ("cpu-bandwidth", "cpu-bandwidth-w8"))

    assert isinstance(whole, NativeEngine)
    assert isinstance(halved, NativeEngine)
    assert halved.weight_bytes < 0.6 * whole.weight_bytes


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_a_native_worker_says_what_to_start_instead(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"no C\+\+ compiler .* --chip-class cpu-bf16"):
        load(tmp_path / "tiny", "cpu-bandwidth")


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_the_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    refusal = native_refusal(open_model(write_tiny_model(tmp_path / "tiny")))

    assert refusal is not None
    assert "no C++ compiler" in refusal


def test_a_model_with_heads_that_do_not_fit_is_refused(tmp_path: Path) -> None:
    model = open_model(
        write_tiny_model(tmp_path / "tiny", {**TINY_LLAMA, "num_attention_heads": 8, "num_key_value_heads": 8})
    )

    assert "heads of 8 numbers" in (native_refusal(model) or "")


def test_a_model_that_fits_is_not_refused(tmp_path: Path) -> None:
    assert native_refusal(open_model(write_tiny_model(tmp_path / "tiny"))) is None
