"""What is done to a network: channels cut, branches left out, weights and activations rounded."""
