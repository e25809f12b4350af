"""Numbers and messages of the wire, and what they mean in Python."""
