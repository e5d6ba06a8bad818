"""Memory: what a model takes, what is free, and the bandwidth of reading it."""
