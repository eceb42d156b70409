"""The cost model behind `megabert plan`: memory and time of a training step on GPUs."""
