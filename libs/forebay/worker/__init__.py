"""What prefill and decode workers share: mapping the arena, KV rights over gRPC, and the engine's thread."""
