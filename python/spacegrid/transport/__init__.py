"""Carrying bytes: protocols, gRPC channels and links, and links inside one process."""
