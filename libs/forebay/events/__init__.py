"""NATS: the connection that outlives outages, and the KV events of every node, published and followed."""
