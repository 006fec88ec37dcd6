"""What a search leaves in its folder, and what can be read from it."""
