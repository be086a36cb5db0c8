"""What ring (sequence-parallel) schedules share: communicator, layouts, merge."""
