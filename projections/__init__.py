"""Tables made from the log: one folder per table, its fold and its SQL; everything here can be built again."""
