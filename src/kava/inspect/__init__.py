"""A look inside: what latents hold, how they move, what the teacher's cache keeps of its steps."""
