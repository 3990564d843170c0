"""A shadow balancer's configuration, derived from production's own file: what may change in it, why, and to what."""
