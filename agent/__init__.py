"""The host agent: packets to exchanges, live or from a capture file, and the processes around it."""
