"""The kernel program's sources, compiled by bcc when the agent starts. Start reading at tap.c."""
