"""The DISK tier's bytes: blocks in one preallocated file, verified on every read. Does not decide what lies there."""
