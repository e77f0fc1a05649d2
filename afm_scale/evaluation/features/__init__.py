"""Features, by which sets of images are compared: the protocol and its kinds."""
