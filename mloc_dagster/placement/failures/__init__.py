"""What becomes of work that failed: its cause, another attempt or none, signs of life, dead letters."""
