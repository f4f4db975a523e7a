"""Rights to KV memory, decided purely: hashes, layout, block pools, leases, eviction. No I/O, no clock, no tensors."""
