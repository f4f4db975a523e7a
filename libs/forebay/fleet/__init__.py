"""Who is in the fleet and how busy: membership in a NATS key-value bucket, load on a plain subject."""
