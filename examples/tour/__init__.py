"""Drives the tracker from outside, as its users and their receivers would, and reports step by step.

- `run`: starts the service, runs the steps in order, prints the table
- `steps`: what is done and what must come of it
- `service`: the tracker as a child process
"""
