"""The gRPC services of a node: thin shells that hand bytes to the core and carry answers back."""
