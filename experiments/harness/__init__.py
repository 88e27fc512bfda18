"""What the scripts that measure share: rows of the tables, how one is measured, how a step is timed."""
