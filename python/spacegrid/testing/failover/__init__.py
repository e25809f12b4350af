"""How long clients wait when nodes fail, hang, are cut off, come, go, or are busy: measured."""
