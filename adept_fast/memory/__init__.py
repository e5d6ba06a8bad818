"""Memory: what a model takes, what is free, what fits, and the bandwidth of reading it."""
