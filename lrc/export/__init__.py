"""The merged student written as a plain Hugging Face folder, proven equal to the factored one."""
