"""Files on disk, with the standard library alone: atomic writes, archives."""
