"""What a user trains: the loop, BrushNet, its data and its commands."""
