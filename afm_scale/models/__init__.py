"""Single-device networks. They know neither time travel nor ranks; they say which blocks may be sharded."""
