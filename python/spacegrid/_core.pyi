"""The compiled core: hash ring, store, replicated log, batch frames, replica protocol."""

__version__: str
