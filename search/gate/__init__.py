"""The gate: what is proved of a network before anything that is said of its compression is believed."""
