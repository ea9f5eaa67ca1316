"""One file for each thing the API speaks of."""
