"""The one exception for wrong user input in a task; it lives here so that the readers need no torch."""


class TaskError(ValueError):
    """The user's task, data or weights cannot be used; the message is one sentence that says what to do."""
