"""What the agent shows of itself and of the shadow while it runs."""
