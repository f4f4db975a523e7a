"""Token ids are those of transformers, on varied texts and for every kind of splitting that is supported."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from forebay.errors import StartError
from forebay.models.default_model import resolve_model
from forebay.models.gguf_metadata import GgufMetadata, MetadataValue
from forebay.tokenizer.build import build_tokenizer
from forebay.tokenizer.special_tokens import special_token_texts
from forebay.tokenizer.vocabulary import read_vocabulary

TEXTS = {
    "empty": "",
    "space": " ",
    "sentence": "What is the capital of France?",
    "contractions": "I'm sure they'll say it's what we've DON'T'VE done'd.",
    "digits": "In 2024, 1234567890 + 3.14159 = 0x7fff; v1.2.3",
    "spaced digits": "a  12\n\n   34\t5   6",
    "other numbers": "½ ² Ⅷ ٣٤ 五 १२",
    "python": "def f(x: int) -> int:\n    if x > 1:\n\t\treturn x ** 2  # 4\n\n\nprint(f(3))\n",
    "json": '{"a": [1, 2, {"b": null}], "c": "\\u00e9"}',
    "html": "<div class='x'>&nbsp;</div><!-- hm -->",
    "chinese": "你好，世界！今天天气怎么样？",
    "japanese": "吾輩は猫である。名前はまだ無い。",
    "arabic": "مرحبا بالعالم",
    "emoji": "😀👩‍👩‍👧‍👦🇩🇪❤️ ok",
    "combining": "e\u0301 n\u0303 \u00e9 \ufb01",
    "whitespace": "  \t \n\n \r\n   x   \u00a0\u3000 y  ",
    "special tokens": "<|im_start|>user\nhi<|im_end|> <|endoftext|><repo_name>x<|im_en|>",
    "controls": "a\x00b\x07c\x7f",
    "long word": "Donaudampfschifffahrtsgesellschaftskapitän" * 5,
    "long text": "The quick brown fox jumps over the lazy dog. " * 120,
}


@cache
def ours() -> Tokenizer:
    return build_tokenizer(metadata())


@cache
def metadata() -> GgufMetadata:
    reader = gguf.GGUFReader(resolve_model(None))
    values = {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")}
    return GgufMetadata(resolve_model(None), values)


@cache
def reference(is_plain: bool = False) -> Any:
    """SmolLM2's own fast tokenizer: its tokenizer.json isolates digits before GPT-2's splitting. Plain: it does not."""
    values = metadata().values
    vocabulary = {token: index for index, token in enumerate(values["tokenizer.ggml.tokens"])}  # type: ignore[arg-type]
    merges = [tuple(merge.split()) for merge in values["tokenizer.ggml.merges"]]  # type: ignore[union-attr]
    backend = Tokenizer(BPE(vocabulary, merges))
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps[is_plain:])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in list(vocabulary)[:17]])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


@cache
def from_gguf_by_transformers() -> Any:
    path = resolve_model(None)
    return transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_ids_are_transformers(text: str) -> None:
    assert ours().encode(text).ids == reference()(text)["input_ids"]


@pytest.mark.parametrize("name", [name for name in TEXTS if name not in {"spaced digits", "other numbers"}])
def test_ids_are_those_transformers_reads_from_the_gguf(name: str) -> None:
    """transformers 5 does not know the splitting "smollm" and leaves digits together with the space before them."""
    assert ours().encode(TEXTS[name]).ids == from_gguf_by_transformers()(TEXTS[name])["input_ids"]


@given(text=st.text(max_size=200))
def test_any_text_has_transformers_ids(text: str) -> None:
    assert ours().encode(text).ids == reference()(text)["input_ids"]


def test_every_token_s_bytes_are_what_the_library_decodes() -> None:
    vocabulary = read_vocabulary(Path("x"), ours(), len(metadata().values["tokenizer.ggml.tokens"]))  # type: ignore[arg-type]

    for token_id, piece in enumerate(vocabulary.pieces):
        assert piece.decode(errors="replace") == ours().decode([token_id], skip_special_tokens=False)
    assert [token_id for token_id, piece in enumerate(vocabulary.visible_pieces) if not piece] == list(range(17))


def test_ids_beyond_the_tokenizer_stand_for_nothing() -> None:
    vocabulary = read_vocabulary(Path("x"), ours(), 49_152 + 8)

    assert len(vocabulary) == 49_160
    assert vocabulary.pieces[-8:] == (b"",) * 8


def changed(**values: MetadataValue | None) -> GgufMetadata:
    """The real metadata with some of tokenizer.ggml's keys changed or, with None, removed."""
    new = {**metadata().values, **{f"tokenizer.ggml.{name}": value for name, value in values.items()}}  # type: ignore[dict-item]
    return GgufMetadata(Path("m.gguf"), {name: value for name, value in new.items() if value is not None})


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "tekken"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_splittings_are_those_transformers_uses(pre: str, text: str) -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    split = tokenizers.Regex(GGUF_PRE_TOKENIZER_SPLITS[pre])
    expected = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )

    splitting = build_tokenizer(changed(pre=pre)).pre_tokenizer

    assert splitting.pre_tokenize_str(text) == expected.pre_tokenize_str(text)


def test_a_file_that_names_no_splitting_gets_gpt2_s() -> None:
    for pre in (None, "default", "gpt-2"):
        tokenizer = build_tokenizer(changed(pre=pre))
        assert tokenizer.encode("a  12").ids == reference(is_plain=True)("a  12")["input_ids"]
    assert ours().encode("a  12").ids != reference(is_plain=True)("a  12")["input_ids"]


def test_qwen_composes_characters_and_llama_takes_whole_tokens() -> None:
    assert build_tokenizer(changed(pre="qwen2")).encode("e\u0301").ids == ours().encode("\u00e9").ids
    merges = [merge for merge in metadata().values["tokenizer.ggml.merges"] if merge != "Ġt he"]  # type: ignore[union-attr]
    assert len(build_tokenizer(changed(pre="llama-bpe", merges=merges, add_bos_token=False)).encode(" the").ids) == 1
    assert len(build_tokenizer(changed(pre="smollm", merges=merges)).encode(" the").ids) == 2


def test_begin_and_end_tokens_are_added_when_the_file_says_so() -> None:
    both = build_tokenizer(changed(add_bos_token=True, add_eos_token=True))

    assert both.encode("a").ids == [1, *ours().encode("a").ids, 2]
    assert both.encode("a", add_special_tokens=False).ids == ours().encode("a").ids
    assert build_tokenizer(changed(pre="llama-bpe", add_bos_token=None)).encode("a").ids[0] == 1
    assert build_tokenizer(changed(add_bos_token=True, bos_token_id=None)).encode("a").ids == ours().encode("a").ids


def test_user_defined_tokens_are_whole_but_not_special() -> None:
    kinds = list(metadata().values["tokenizer.ggml.token_type"])  # type: ignore[arg-type]
    tokens = list(metadata().values["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
    kinds[-1], tokens[-1] = 4, "<think hard>"

    tokenizer = build_tokenizer(changed(token_type=kinds, tokens=tokens, merges=[]))

    assert tokenizer.encode("<think hard>").ids == [len(tokens) - 1]
    assert read_vocabulary(Path("x"), tokenizer, len(tokens)).visible_pieces[-1] == b"<think hard>"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": "llama"}, "tokenizer model llama is not supported"),
    "splitting": ({"pre": "unheard-of"}, "pre-tokenizer unheard-of is not supported; supported: default"),
    "no model": ({"model": None}, "tokenizer.ggml.model is missing"),
    "no tokens": ({"tokens": None}, "the vocabulary or its merges are missing"),
    "no merges": ({"merges": None}, "the vocabulary or its merges are missing"),
    "alien merge": ({"merges": ["qqqqq zzzzz"]}, "do not fit together"),
    "merge of three": ({"merges": ["a b c"]}, "do not fit together"),
    "twins": ({"tokens": ["a", "a"], "merges": [], "token_type": None}, "two tokens of the vocabulary are the same"),
    "kinds": ({"token_type": [1]}, "1 token types for 49152 tokens"),
    "bos": ({"add_bos_token": True, "bos_token_id": 49_152}, "bos token id 49152 is not in the vocabulary"),
}


@pytest.mark.parametrize(("values", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses_in_one_line(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(StartError, match=expected) as refusal:
        build_tokenizer(changed(**values))

    assert "\n" not in refusal.value.message


def test_tokenizer_json(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(StartError, match="there is no such file"):
        build_tokenizer(path)

    path.write_text("{}")
    with pytest.raises(StartError, match="not a tokenizer that can be read"):
        build_tokenizer(path)

    reference().backend_tokenizer.save(str(path))
    shortened = Tokenizer.from_file(str(path))
    shortened.enable_truncation(3)
    shortened.enable_padding(length=8)
    shortened.save(str(path))
    assert build_tokenizer(path).encode(TEXTS["python"]).ids == ours().encode(TEXTS["python"]).ids
    assert build_tokenizer(path).encode("a").ids == ours().encode("a").ids


def sentencepiece(tmp_path: Path, decoder: dict[str, Any] | None) -> Tokenizer:
    """A tokenizer.json as Llama 2 and Mistral have it, with five tokens."""
    vocabulary = {"<unk>": 0, "<0xE2>": 1, "<0x82>": 2, "<0xAC>": 3, "\u2581hi": 4}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [], "byte_fallback": True, "unk_token": "<unk>"}
    special = {"id": 0, "content": "<unk>", "special": True, "normalized": False}
    special |= {"single_word": False, "lstrip": False, "rstrip": False}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "model": model, "decoder": decoder, "added_tokens": [special]}))
    return build_tokenizer(path)


def test_sentencepiece_bytes(tmp_path: Path) -> None:
    steps = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    tokenizer = sentencepiece(tmp_path, {"type": "Sequence", "decoders": steps})

    vocabulary = read_vocabulary(tmp_path, tokenizer, 5)

    assert vocabulary.visible_pieces == (b"", b"\xe2", b"\x82", b"\xac", b" hi")
    assert vocabulary.drops_first_space
    assert b"".join(vocabulary.pieces[1:]).decode() == tokenizer.decode([1, 2, 3, 4]) == "€ hi"


@pytest.mark.parametrize("decoder", [None, {"type": "WordPiece", "prefix": "##", "cleanup": True}])
def test_refuses_tokenizers_that_decode_otherwise(tmp_path: Path, decoder: dict[str, Any] | None) -> None:
    with pytest.raises(StartError, match="a tokenizer that decodes by"):
        read_vocabulary(tmp_path, sentencepiece(tmp_path, decoder), 5)


def test_special_token_texts(tmp_path: Path) -> None:
    assert special_token_texts(metadata()) == from_gguf_by_transformers().special_tokens_map
    assert special_token_texts(tmp_path / "tokenizer.json") == {}

    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<a>", "eos_token": "<b>"}')
    (tmp_path / "tokenizer_config.json").write_text(
        '{"eos_token": {"content": "<c>"}, "pad_token": null, "x_token": "y"}'
    )
    assert special_token_texts(tmp_path / "tokenizer.json") == {"bos_token": "<a>", "eos_token": "<c>"}
