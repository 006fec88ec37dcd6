"""What is raised for a cost that is not known."""


class TableError(ValueError):
    """A cost that is not known, or a table that cannot be read. An unknown cost is never 0."""
