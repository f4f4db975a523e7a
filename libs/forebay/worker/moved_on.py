"""The end of a sequence on a worker that drains: it goes on at another."""

from forebay.errors import RETRY_AFTER_S, DrainingError


class MovedOnError(DrainingError):
    """The worker has handed the sequence over. epoch: another worker of the node takes it over with this."""

    def __init__(self, epoch: int) -> None:
        super().__init__("the worker is draining and handed the sequence over", retry_after_s=RETRY_AFTER_S)
        self.epoch = epoch
