"""Converting: a plan of steps with known totals, and the engine that carries it out."""
