"""Engines that stay loaded between stages, and endpoints that people and programs talk to."""
