"""Announces changes of the index on NATS. Knows the two shapes of an event, and nothing of when it happens."""

from collections.abc import Sequence

from forebay.events.kv_publisher import KvEventPublisher
from forebay.kv.effects import IndexEvent
from forebay.wire.kv_index import event_to_proto


class Announcer:
    """A KvEventSink in front of the publisher, which keeps what it is given until NATS takes it."""

    def __init__(self, publisher: KvEventPublisher) -> None:
        self._publisher = publisher

    def publish(self, first_event_number: int, events: Sequence[IndexEvent]) -> None:
        """`events[i]` has number first_event_number + i."""
        self._publisher.publish(first_event_number, [event_to_proto(event) for event in events])
