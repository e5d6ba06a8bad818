"""Workers: a runtime each, in a process and an interpreter of its own (``protocol``)."""
