"""What needs packages that nothing else here needs; each module says which."""
