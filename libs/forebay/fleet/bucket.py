"""The JetStream key-value bucket that holds the fleet: its name, its settings, and making it where it is missing."""

from typing import Final

from nats.js import JetStreamContext
from nats.js.api import KeyValueConfig, StorageType
from nats.js.errors import BucketNotFoundError
from nats.js.kv import KeyValue

BUCKET: Final = "forebay-fleet"
TTL_S: Final = 6.0
RENEW_INTERVAL_S: Final = 2.0


async def open_bucket(jetstream: JetStreamContext, ttl_s: float = TTL_S) -> KeyValue:
    """The fleet's bucket, made if absent.

    A record not renewed within `ttl_s` is replaced by a limit marker, which watchers see as a purge. The bucket lies in
    memory: after NATS restarts it is made anew and every member writes itself again.

    Raises:
        nats.errors.Error: NATS or JetStream is away.
    """
    try:
        return await jetstream.key_value(BUCKET)
    except BucketNotFoundError:
        # Two members may do this at once: making a bucket with equal settings again is no error.
        return await jetstream.create_key_value(
            KeyValueConfig(
                bucket=BUCKET, history=1, ttl=ttl_s, limit_marker_ttl=max(ttl_s, 1.0), storage=StorageType.MEMORY
            )
        )
