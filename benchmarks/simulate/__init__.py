"""A discrete-event simulation of replicas of the server: what they serve, how fast, and at what cost."""
