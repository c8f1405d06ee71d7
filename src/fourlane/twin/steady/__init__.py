"""A service in steady state, in closed form; `fourlane.twin.operating_point` joins the parts."""
