"""Imported by the fork server before anything else, and nowhere else: the server dies with its stage.

A worker holds the pipe by which the server would notice, so without this both outlive a killed stage.
"""

from bench import guard

guard.die_with_parent()
