"""How a running agent is asked and told: the control socket, and the commands that use it."""
