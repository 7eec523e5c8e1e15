"""`make demo`: the main job on the real stack. Workflows with planned faults, processes killed, everything repaired."""
