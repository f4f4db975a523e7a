"""Settings of the tokenizer service."""

from pydantic import Field

from forebay import ports
from forebay.rpc.settings import ServiceSettings


class TokenizerSettings(ServiceSettings):
    """The tokenizer turns text and conversations into token ids, and token ids into text. These are its settings."""

    listen: str = Field(
        ports.default_address(ports.TOKENIZER), description="address to serve on, HOST:PORT; port 0 takes any"
    )
    model: str | None = Field(None, description="GGUF file or Hugging Face folder; default: SmolLM2-135M-Instruct")
