"""Documented import paths of what FastAPI applications use."""
