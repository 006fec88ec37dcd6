"""From a compressed network to a file: the walk over the graph, and what it asks."""
