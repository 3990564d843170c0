"""The shadow's side: exchanges, replay to a shadow pool, recording and comparison. Knows nothing of packets."""
