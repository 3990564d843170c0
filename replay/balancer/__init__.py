"""Shadow pools: addresses, upstreams, policies, and the engines that put them together behind one interface."""
