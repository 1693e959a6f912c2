"""Sessions as they are played or written: messages, players, events, courses."""
