"""The keeper role: proves again what lies stored, ends the retention of checkpoints, deletes what nobody refers to."""
