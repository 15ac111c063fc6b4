"""The main job end to end, as a client of a server that it starts: train a switch, use it, transfer a vector."""
