"""Settings of the tokenizer service."""

from pydantic import Field

from forebay import ports
from forebay.rpc.settings import ServiceSettings


class TokenizerSettings(ServiceSettings):
    """Flags and environment of the tokenizer service."""

    listen: str = Field(
        ports.default_address(ports.TOKENIZER), description="address to serve on, HOST:PORT; port 0 takes any"
    )
    model: str | None = Field(None, description="GGUF file or Hugging Face folder; default: SmolLM2-135M-Instruct")
