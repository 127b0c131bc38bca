"""GRPO training of vision-language-action policies on any Gymnasium vector environment."""
