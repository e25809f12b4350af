"""Generated stubs of proto/spacegrid/v1; checked against the sources."""
