"""Space-Based Architecture for Python: a replicated in-memory data grid with units beside their data."""
