"""Domain values as protobuf and back: the one place that knows both. No I/O, no gRPC."""
