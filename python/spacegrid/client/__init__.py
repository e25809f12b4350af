"""The two clients: `AsyncGrid` for asyncio and `Grid` for threads, with the same methods."""
