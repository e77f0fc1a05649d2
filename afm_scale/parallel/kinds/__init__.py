"""The kinds of plan: what a recipe may say of each, and what each demands; nothing here needs more than torch."""
