"""The order in which runs begin: `order` decides, the daemon of `definitions.daemon` acts on it."""
