"""How text is split before byte-level BPE, by the name that GGUF gives it (tokenizer.ggml.pre).

The expressions are those of the models' own tokenizer.json files. Knows nothing of vocabularies.
"""

from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.normalizers import NFC, Normalizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class Splitting:
    """What happens to text before BPE, and two habits that go with it.

    expression: what one piece is; None: GPT-2's own. ignores_merges: a piece that is a token is taken whole.
    """

    expression: str | None = None
    isolates_digits: bool = False
    composes_characters: bool = False  # Unicode NFC first
    ignores_merges: bool = False
    adds_bos: bool = False  # when the file does not say

    def pre_tokenizer(self) -> PreTokenizer:
        """Splits and spells bytes as characters."""
        if self.expression is not None:
            split = Split(Regex(self.expression), behavior="isolated")
            return Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
        gpt2 = ByteLevel(add_prefix_space=False, use_regex=True)
        return Sequence([Digits(individual_digits=True), gpt2]) if self.isolates_digits else gpt2

    def normalizer(self) -> Normalizer | None:
        """What is done to the text first, if anything."""
        return NFC() if self.composes_characters else None


_GPT2 = Splitting()
_STARCODER = Splitting(isolates_digits=True)
_LLAMA_BPE = Splitting(_LLAMA3, ignores_merges=True, adds_bos=True)
_QWEN = Splitting(_QWEN2, composes_characters=True)

SPLITTINGS: dict[str, Splitting] = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": _STARCODER,
    "starcoder": _STARCODER,
    "refact": _STARCODER,
    "llama-bpe": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
    "tekken": Splitting(_TEKKEN, ignores_merges=True, adds_bos=True),
}
"""Every name that is supported."""
