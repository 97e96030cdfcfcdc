"""Where steps run: the hardware of this machine and the work done on it."""
