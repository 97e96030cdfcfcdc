"""Run folders, results and their digests on disk; everything is written atomically."""
