"""Networks priced with a table of kernels, and how such a table is made and checked."""
