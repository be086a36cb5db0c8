"""Imported by the fork server before anything else, and nowhere else: the server dies with its stage.

A worker holds the pipe by which the server would notice, so without this both outlive a killed stage. A stage that
is gone before we ask to die with it has left its process id in the environment.
"""

import os

from bench import guard

_stage = os.environ.get("ATTN_BENCH_SERVER_OF")
guard.die_with_parent(int(_stage) if _stage else None)
