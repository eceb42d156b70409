"""Cost model and layout search behind `megabert plan`: memory and time of a training step on GPUs."""
