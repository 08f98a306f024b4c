"""The ``docker`` engine: one hardened container per lease, and one CDI device in it."""
