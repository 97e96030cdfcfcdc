"""Workers: places that can carry a run out, what hardware each has, and what of it a run needs."""
