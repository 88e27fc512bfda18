"""One file an experiment; its docstring gives the exact command, the hardware, the expected time and number."""
