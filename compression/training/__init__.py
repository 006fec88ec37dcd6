"""How what was changed learns again: fine-tune, batch norms, inherited weights."""
