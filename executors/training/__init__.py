"""Trainers: one recipe a file, on TRL and PEFT."""
