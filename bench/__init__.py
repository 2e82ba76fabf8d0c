"""pagefill beside its peers: the same inputs, one run, in turns. See bench/README.md."""
