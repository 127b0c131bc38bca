"""A scripted expert for LIBERO: memoryless skills, chosen by a task's goal, that act on a privileged view of a slot."""
