"""An answer that is read in the background while a test changes the fleet."""

import asyncio
from typing import Any

from forebay.rpc.status import translated
from forebay.v1 import router_pb2


class ReadAnswer:
    """A call of Generate, begun when it is made."""

    def __init__(self, stub: Any, request: router_pb2.GenerateRequest, timeout_s: float = 20.0) -> None:
        self.call = stub.Generate(request, timeout=timeout_s)
        self.started = router_pb2.Started()
        self.finished = router_pb2.Finished()
        self.text = self.token_text = ""
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with translated():
            async for response in self.call:
                self.text += response.chunk.text
                self.token_text += "".join(map(chr, response.chunk.token_ids))
                if response.HasField("started"):
                    self.started = response.started
                if response.HasField("finished"):
                    self.finished = response.finished

    async def complete(self) -> None:
        """Returns at its good end. Raises ForebayError."""
        await self._reading
