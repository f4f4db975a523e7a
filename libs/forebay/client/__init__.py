"""The SDK: ask a Forebay router for text, from `async` code (`AsyncClient`) or plain code (`Client`)."""

from forebay.client.async_client import AsyncClient
from forebay.client.blocking_stream import BlockingStream
from forebay.client.client import Client
from forebay.client.completion import (
    Chunk,
    Completion,
    ExecutionMode,
    Explanation,
    FinishReason,
    Plan,
    Prediction,
    Timings,
    TokenLogprobs,
    TokenProbability,
    Usage,
)
from forebay.client.errors import BrokenAnswerError, ConnectionLostError, UnreachableError
from forebay.client.fleet import Fleet, Member, WorkerLoad
from forebay.client.request import Message, Prompt, RequestOptions
from forebay.client.stream import CompletionStream
from forebay.errors import RequestCancelledError

__all__ = [
    "AsyncClient",
    "BlockingStream",
    "BrokenAnswerError",
    "Chunk",
    "Client",
    "Completion",
    "CompletionStream",
    "ConnectionLostError",
    "ExecutionMode",
    "Explanation",
    "FinishReason",
    "Fleet",
    "Member",
    "Message",
    "Plan",
    "Prediction",
    "Prompt",
    "RequestCancelledError",
    "RequestOptions",
    "Timings",
    "TokenLogprobs",
    "TokenProbability",
    "UnreachableError",
    "Usage",
    "WorkerLoad",
]
