"""The pure core: fold events into state, decide repairs. No I/O, no clock, no random; time is the broker's timestamp.

The same functions serve live recovery, replay, backtest and simulation. An import rule keeps it so.
"""
