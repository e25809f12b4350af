"""Pure decisions: functions of (state, event, time), without clocks, sockets or randomness.

A machine has one mutator, ``handle(event, now_ms) -> list[Effect]``; the shell around it does what
the effects say and feeds what comes of them back as events. Who calls: node/, coordinator/, tests.
"""
