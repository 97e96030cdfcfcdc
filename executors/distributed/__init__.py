"""One training in several processes: who starts them, and what they must agree on."""
