"""The KV-cache service of a node: owns the KV memory, lends it to workers, and keeps what they seal."""
