"""How well texts find clips, sounds and both, and clips their texts."""
