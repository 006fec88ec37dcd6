"""One policy tried: priced, compressed, trained, scored."""
