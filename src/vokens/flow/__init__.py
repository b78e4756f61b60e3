"""Flow matching: grids and solvers of the ODE, guidance, and the noise it starts from."""
