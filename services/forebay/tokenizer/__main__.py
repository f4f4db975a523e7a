"""`python -m forebay.tokenizer`: builds the tokenizer of one model and serves it until told to stop."""

import asyncio
import os
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import Final

from forebay.events.connection import connect
from forebay.fleet.drain import drain
from forebay.fleet.member import Member, incarnation_now
from forebay.fleet.registrar import Registrar
from forebay.models.default_model import resolve_model
from forebay.models.model_file import ModelFile, open_model
from forebay.role import Role
from forebay.rpc.server import Server
from forebay.rpc.service import run
from forebay.telemetry import spans
from forebay.tokenizer.build import build_tokenizer
from forebay.tokenizer.chat_template import ChatTemplate
from forebay.tokenizer.config import TokenizerSettings
from forebay.tokenizer.encoder import TextEncoder
from forebay.tokenizer.servicer import TokenizerDescription, TokenizerServicer
from forebay.tokenizer.special_tokens import special_token_texts
from forebay.tokenizer.vocabulary import read_vocabulary
from forebay.v1 import tokenizer_pb2_grpc

SERVICE: Final = "forebay.v1.TokenizerService"
SPAN_NAMES: Final = {
    f"/{SERVICE}/Encode": spans.TOKENIZE,
    f"/{SERVICE}/EncodeBatch": spans.TOKENIZE,
    f"/{SERVICE}/Detokenize": None,  # lives as long as the router
    f"/{SERVICE}/GetTokenizer": None,  # belongs to no request
}
STOP_GRACE_S: Final = 0.5


async def serve(settings: TokenizerSettings, stop: asyncio.Event) -> None:
    """Serves from ready to drained."""
    model = open_model(resolve_model(settings.model))
    server = Server(settings.listen, SPAN_NAMES)
    servicer = build_servicer(model)
    server.add(tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server, servicer, SERVICE)
    async with AsyncExitStack() as stack:
        address = await server.start()
        stack.push_async_callback(server.stop, 0)
        connection = await connect(settings.nats_url, f"tokenizer-{settings.node_id}")
        stack.push_async_callback(connection.close)
        registrar = Registrar(connection, member_of(settings, model, settings.advertise or address))
        stack.push_async_callback(registrar.close)
        await registrar.start()
        await server.set_serving(True)
        await stop.wait()
        # Routers put new token streams elsewhere now, and replay there what is cut off.
        await drain(server, registrar, servicer.wait_idle(), settings.drain_s)
        await server.stop(STOP_GRACE_S)


def build_servicer(model: ModelFile) -> TokenizerServicer:
    """All that serves one model.

    Raises:
        StartError: the model's tokenizer is missing, damaged or not supported.
    """
    source = model.tokenizer_source
    tokenizer = build_tokenizer(source)
    template = ChatTemplate(model.chat_template, special_token_texts(source))
    served = TokenizerDescription(
        name=model.name,
        digest=model.digest,
        eos_token_ids=model.config.eos_token_ids,
        context_tokens=model.config.context_tokens,
        has_chat_template=model.chat_template is not None,
    )
    vocabulary = read_vocabulary(model.path, tokenizer, model.config.vocabulary_size)
    return TokenizerServicer(served, TextEncoder(tokenizer, template), vocabulary)


def member_of(settings: TokenizerSettings, model: ModelFile, address: str) -> Member:
    """This service's record in the fleet."""
    incarnation = incarnation_now()
    return Member(
        worker_id=f"tokenizer-{settings.node_id}-{incarnation:x}",
        role=Role.TOKENIZER,
        address=address,
        node_id=settings.node_id,
        model=model.name,
        model_digest=model.digest,
        version=version("forebay"),
        incarnation=incarnation,
    )


if __name__ == "__main__":
    # The node's cores belong to its workers: one thread encodes.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run("tokenizer", TokenizerSettings, serve)
