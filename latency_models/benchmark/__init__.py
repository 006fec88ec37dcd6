"""How kernels and networks are timed on the machine at hand."""
