"""One network handed over: chosen, trained long, exported, verified."""
