"""How well scores and masks agree with a truth, plane by plane, in memory set by the plane."""
