"""Many trials: the loop, the storages, the workers."""
