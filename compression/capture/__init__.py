"""A user's module, or a file, becomes a Network: what is computed, and which channels belong together."""
