"""KV memory, decided purely: names, layouts, rights, tiers, eviction, pulls between nodes. No I/O, clock or tensors."""
