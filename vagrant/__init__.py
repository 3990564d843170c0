"""The places shadowtap is tried out in: a lab of network namespaces now, virtual machines later."""
