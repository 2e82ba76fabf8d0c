"""pagefill beside the attention of others on an NVIDIA GPU."""
