"""Scripts to read: metarl and Stable-Baselines3 together."""
