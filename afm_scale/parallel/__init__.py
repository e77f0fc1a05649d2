"""How players are laid over ranks. Nothing outside this package asks which plan runs."""
