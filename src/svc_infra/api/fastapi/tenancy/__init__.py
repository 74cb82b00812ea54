"""Documented import paths of tenancy."""
