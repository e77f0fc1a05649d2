"""The loop, the state it advances, the average, and the hooks that watch."""
