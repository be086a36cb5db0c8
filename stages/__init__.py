"""stages: in what order. One script per DVC stage, no logic of its own."""
