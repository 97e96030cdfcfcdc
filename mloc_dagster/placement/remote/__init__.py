"""Stages on machines that share no path with this one; what carries them there (Docker, …) is told by a `Carrier`."""
