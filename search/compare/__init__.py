"""Each technique alone, and the usual combinations, on the user's own network at equal training."""
