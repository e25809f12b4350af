"""The node: the data plane of one process, with its servers, peers, units, pumps and lifecycle."""
