"""bench: how it is measured, judged, recorded and shown."""
