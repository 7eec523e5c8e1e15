"""A development workflow (code_generation, build, test, deployment) as a service of its own."""
