"""Sources of TCP segments: the kernel program's ring buffers, and capture files."""
