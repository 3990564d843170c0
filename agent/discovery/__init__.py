"""Who a shadow pool's upstreams are, found out at run time by a process of its own: DNS, files, AWS target groups."""
