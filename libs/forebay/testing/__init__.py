"""What tests and benchmarks of any room need: a local mesh, and stand-ins written by hand. No pytest in it."""
