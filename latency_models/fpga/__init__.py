"""FPGAs: overlays and dataflow designs, with what they fit into."""
