"""What is measured on a board, and what comes back."""
