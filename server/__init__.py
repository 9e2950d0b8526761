"""The gRPC ingress."""
