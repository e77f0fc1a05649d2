"""What a recipe will cost, before it runs: steps that are taken without computing, and what follows from them."""
