"""Processors by what they compute and move in a second."""
