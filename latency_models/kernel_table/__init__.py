"""Tables of measured kernels, and the files that they are measured with."""
