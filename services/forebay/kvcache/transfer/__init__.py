"""KV blocks between nodes: who sends, who receives, and the ways the bytes take."""
