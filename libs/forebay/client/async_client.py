"""The client for `async` code. `Client` runs this very class, so there is only one of everything."""

from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Final, Self, TypeVar, Unpack

from forebay import ports
from forebay.client.assembly import read_explanation
from forebay.client.completion import Completion, Explanation
from forebay.client.errors import sharpened
from forebay.client.fleet import Fleet, read_fleet
from forebay.client.persistence import is_lost
from forebay.client.request import Message, Prompt, RequestOptions, build_request, hedge_of, timeout_of
from forebay.client.routers import Routers
from forebay.client.stream import CompletionStream
from forebay.errors import ForebayError, UnknownRequestError, UnknownWorkerError
from forebay.routing.demand import Demand
from forebay.routing.role_advice import Recommendation
from forebay.rpc.status import translated
from forebay.v1 import router_pb2
from forebay.wire.advice import advice_from_proto, demand_from_proto, demand_to_proto

DEFAULT_TARGET: Final = ports.default_address(ports.ROUTER)
DEFAULT_TIMEOUT_S: Final = 600.0
_Answer = TypeVar("_Answer")
WHOLE_GATHER_MS: Final = 1_000
"""Also the work that is lost with a worker, whose tokens of this time nobody has yet."""


class AsyncClient:
    """Asks a router, or several in turn. Connects at the first call and again by itself; safe for many tasks of a loop.

    target: HOST:PORT, or several, as a list or separated by commas. A router that is lost, or refuses because it
    drains, is followed by the next, which goes on behind what has come: the caller sees a pause. Errors that say
    something of the request are not tried again.
    Every call has a deadline (`timeout_s`) and carries the caller's active OpenTelemetry trace, if there is one.
    Errors are the classes of `forebay.errors`, and those of `forebay.client.errors`.

        async with AsyncClient() as client:
            async for chunk in (stream := client.stream(messages=[{"role": "user", "content": "Hi"}])):
                print(chunk.text, end="")
            print(stream.completion.usage)
    """

    def __init__(self, target: str | Iterable[str] = DEFAULT_TARGET, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._routers = Routers(target)
        self._timeout_s = timeout_s

    @property
    def target(self) -> str:
        """The routers' addresses, separated by commas."""
        return str(self._routers)

    async def generate(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Iterable[Message] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Completion:
        """The whole answer to a prompt (text without template, or token ids) or to chat messages."""
        return await self._whole(prompt, messages, options)

    async def chat(self, messages: Iterable[Message], **options: Unpack[RequestOptions]) -> Completion:
        """The whole answer to a conversation, rendered by the model's chat template."""
        return await self._whole(None, messages, options)

    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Iterable[Message] | None = None,
        **options: Unpack[RequestOptions],
    ) -> CompletionStream:
        """The answer as it arrives. The call begins at the first iteration and ends with it."""
        request, timeout_s = build_request(prompt, messages, options), timeout_of(options, self._timeout_s)
        return CompletionStream(request, self._routers, timeout_s, hedge_of(options))

    async def cancel(self, request_id: str, *, timeout_s: float = 10.0) -> None:
        """Ends a running request, whichever router has it. Raises UnknownRequestError when there is none of this id."""
        request = router_pb2.CancelRequest(request_id=request_id)
        await self._of_any(
            lambda target: self._routers.stub(target).Cancel(request, timeout=timeout_s), UnknownRequestError
        )

    async def fleet(self, *, timeout_s: float = 10.0) -> Fleet:
        """The fleet as a router sees it."""
        request = router_pb2.GetFleetRequest()
        return read_fleet(
            await self._of_any(lambda target: self._routers.stub(target).GetFleet(request, timeout=timeout_s))
        )

    async def explain(self, request_id: str, *, timeout_s: float = 10.0) -> Explanation:
        """Why a recent request was planned as it was, by whichever router planned it. Raises UnknownRequestError."""
        request = router_pb2.ExplainRequestRequest(request_id=request_id)
        return read_explanation(
            await self._of_any(
                lambda target: self._routers.stub(target).ExplainRequest(request, timeout=timeout_s),
                UnknownRequestError,
            )
        )

    async def drain(self, worker_id: str, *, force: bool = False, timeout_s: float = 10.0) -> int:
        """Has a prefill or decode worker drain, and returns how many sequences it has; see RouterService.DrainWorker.

        It leaves the fleet when it has ended. force: also if it is the last of its role. Raises UnknownWorkerError,
        LastWorkerError, NotDrainableError, WorkerLostError.
        """
        request = router_pb2.DrainWorkerRequest(worker_id=worker_id, force=force)
        response = await self._of_any(
            lambda target: self._routers.stub(target).DrainWorker(request, timeout=timeout_s), UnknownWorkerError
        )
        return response.running_sequences

    async def advise_roles(
        self, *, time_to_first_token_s: float = 0.5, time_per_output_token_s: float = 0.05, timeout_s: float = 10.0
    ) -> Recommendation:
        """How many workers should prefill and how many decode, for what all routers together were asked lately.

        Raises NothingToAdviseError where the fleet has not workers of both roles, or they have not told their rates.
        """

        async def advised(target: str, demand: Demand | None) -> router_pb2.AdviseRolesResponse:
            request = router_pb2.AdviseRolesRequest(
                demand=None if demand is None else demand_to_proto(demand),
                time_to_first_token_s=time_to_first_token_s,
                time_per_output_token_s=time_per_output_token_s,
            )
            return await self._routers.stub(target).AdviseRoles(request, timeout=timeout_s)

        total = Demand()
        for one in self._routers.targets:
            try:
                with translated():
                    total = total.plus(demand_from_proto((await advised(one, None)).own_demand))
            except ForebayError as error:
                if not is_lost(error):
                    raise
        return advice_from_proto(await self._of_any(lambda target: advised(target, total)))

    async def aclose(self) -> None:
        """Closes the connections; running streams end as cancelled. Idempotent."""
        await self._routers.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _whole(
        self, prompt: Prompt | None, messages: Iterable[Message] | None, options: RequestOptions
    ) -> Completion:
        # Nobody reads along, so the text may come in few messages.
        return await self.stream(prompt, messages=messages, **({"gather_ms": WHOLE_GATHER_MS} | options)).finish()

    async def _of_any(self, ask: Callable[[str], Awaitable[_Answer]], *passed_over: type[ForebayError]) -> _Answer:
        """The answer of the first router that can be reached and does not fail with an error that is passed over.

        Raises the first such error when there is no answer, else that no router can be reached.
        """
        refusal = unreachable = None
        for target in self._routers.in_turn():
            try:
                with translated():
                    return await ask(target)
            except passed_over as error:
                refusal = refusal or error
            except ForebayError as error:
                if not is_lost(error):
                    raise
                self._routers.note_lost(target)
                unreachable = error
        if refusal is not None:
            raise refusal
        assert unreachable is not None
        raise sharpened(unreachable, self.target, has_answered=False) from unreachable
